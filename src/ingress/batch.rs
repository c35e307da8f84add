//! A batch: NDJSON in, NDJSON out, a line for a line, in order. A blank line is none.
//!
//! Lines are read one by one, and a bad one spoils only itself; the good ones go to the queue together and are on disk
//! together when the reply starts. There is no wait: a line says `QUEUED`, or for a repeat what is known.
//!
//! The reply is as long as there are lines, and keeps the body's share of the budget until it has been read. Lines too
//! short for messages have replies longer than themselves: those take a share of their own before they are written, and a
//! batch of thousands of them is refused as a whole.

use hyper::header::HeaderMap;

use super::Inner;
use super::accept::Stub;
use super::body::{Share, Whole};
use super::parse::{Line, Members};
use super::refusal::Refusal;
use super::reply::{self, Answer};
use super::request;
use crate::message::{Caller, Submission};
use crate::queue::StoreFailed;

/// No line that is a message is shorter.
const LINE_BYTES_MIN: usize = 64;
/// Lines that may be shorter, and are answered out of the body's share.
const SHORT_LINES_FREE: usize = 64;
/// Lines that may be shorter at all.
const SHORT_LINES_MAX: usize = 4096;
/// What is said of a short line is no longer.
const SHORT_REPLY_BYTES_MAX: usize = 256;

impl Inner {
    pub(super) async fn batch(&self, headers: &HeaderMap, body: Whole, caller: Caller) -> Result<Answer, Refusal> {
        let trace_id = request::trace_id(headers);
        let Whole { bytes, share } = body;
        let jsons = || bytes.split(|byte| *byte == b'\n').filter(|json| !json.trim_ascii().is_empty());
        let (count, messages) = (jsons().count(), bytes.len() / LINE_BYTES_MIN);
        let most = SHORT_LINES_MAX + messages;
        if count > most {
            return Err(Refusal::invalid(format_args!(
                "the batch has {count} lines in {} bytes, at most {most} are read",
                bytes.len()
            )));
        }
        let short = count.saturating_sub(SHORT_LINES_FREE + messages);
        let mut room = Share::default();
        if short > 0 {
            room = Box::pin(self.replies.reply_share(short * SHORT_REPLY_BYTES_MAX, caller)).await;
        }
        let mut submissions = Vec::new();
        let mut lines = Vec::with_capacity(count);
        for json in jsons() {
            let line = Members::parse(json).and_then(|mut members| members.line(&self.options.limits));
            lines.push(line.map_err(Refusal::from).map(|line| {
                let Line { body, client_token, connection_token, conversation, lifetime } = line;
                let trace_id = trace_id.clone();
                let submission = Submission {
                    body,
                    client_token,
                    connection_token,
                    conversation,
                    replaces: None,
                    lifetime,
                    caller,
                    trace_id,
                };
                let stub = Stub::of(&submission);
                submissions.push(submission);
                stub
            }));
        }
        let rate = self.budget.pacer().rate();
        let mut verdicts = Vec::new();
        if !submissions.is_empty() {
            let timer = self.measures.accept_seconds.start_timer();
            verdicts = self.queue.accept(submissions, rate).await?;
            timer.observe_duration();
        }
        let mut verdicts = verdicts.into_iter();
        let mut replies = Vec::with_capacity(lines.len() * 80);
        for (line, json) in lines.into_iter().zip(jsons()) {
            let kept = match line {
                Ok(stub) => {
                    let verdict =
                        verdicts.next().ok_or_else(|| StoreFailed("a submission without a verdict".into()))?;
                    stub.kept(verdict, rate, &self.clock).map(|state| (stub, state))
                }
                Err(refusal) => Err(refusal),
            };
            match kept {
                Ok((stub, state)) => reply::line(&mut replies, &stub.client_token, &state),
                Err(refusal) => {
                    reply::error_line(&mut replies, &refusal);
                    let subject = Members::parse(json).map(|mut members| members.subject()).unwrap_or_default();
                    self.rejected(&refusal.about(subject));
                }
            }
        }
        drop(bytes);
        Ok(reply::of_lines(share.of(room.of(replies))))
    }
}

//! A batch: NDJSON in, NDJSON out, a line for a line, in order. A blank line is none.
//!
//! Lines are read one by one, and a bad one spoils only itself; the good ones go to the queue together and are on disk
//! together when the reply starts. There is no wait: a line says `QUEUED`, or for a repeat what is known.
//!
//! The reply is as long as there are lines. So that short lines do not make it many times the body, a batch of far more
//! lines than messages fit in is refused as a whole; and it keeps the body's share of the budget until it has been read.

use hyper::header::HeaderMap;

use super::Inner;
use super::accept::Stub;
use super::body::Whole;
use super::parse::{Line, Members};
use super::refusal::Refusal;
use super::reply::{self, Answer};
use super::request;
use crate::message::{Caller, Submission};
use crate::queue::StoreFailed;

/// No line that is a message is shorter.
const LINE_BYTES_MIN: usize = 64;
/// Lines that may be shorter.
const LINES_FREE: usize = 64;

impl Inner {
    pub(super) async fn batch(&self, headers: &HeaderMap, body: Whole, caller: Caller) -> Result<Answer, Refusal> {
        let trace_id = request::trace_id(headers);
        let Whole { bytes, share } = body;
        let jsons = || bytes.split(|byte| *byte == b'\n').filter(|json| !json.trim_ascii().is_empty());
        let (count, most) = (jsons().count(), LINES_FREE + bytes.len() / LINE_BYTES_MIN);
        if count > most {
            return Err(Refusal::invalid(format_args!(
                "the batch has {count} lines in {} bytes, at most {most} are messages",
                bytes.len()
            )));
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
        drop(bytes);
        let mut verdicts = verdicts.into_iter();
        let mut replies = Vec::with_capacity(lines.len() * 80);
        for line in lines {
            let kept = match line {
                Ok(stub) => {
                    let verdict =
                        verdicts.next().ok_or_else(|| StoreFailed("a submission without a verdict".into()))?;
                    stub.kept(verdict, rate).map(|state| (stub, state))
                }
                Err(refusal) => Err(refusal),
            };
            match kept {
                Ok((stub, state)) => reply::line(&mut replies, &stub.client_token, &state),
                Err(refusal) => {
                    self.measures.rejected(&refusal);
                    reply::error_line(&mut replies, &refusal);
                }
            }
        }
        Ok(reply::of_lines(replies, share))
    }
}

//! A batch: NDJSON in, NDJSON out, one line for each line, in order. Blank lines are ignored.
//!
//! Lines are parsed one by one, and an invalid one affects only itself. The valid ones go to the queue together and are
//! on disk together when the reply starts. There is no wait: a line of the reply says `QUEUED`, or for a repeat its
//! state.
//!
//! The reply has as many lines as the request, and keeps the body's permit until it has been read. Lines too short for
//! messages have replies longer than themselves. Those take a permit of their own before they are written, and a batch
//! with thousands of them is refused as a whole.

use hyper::header::HeaderMap;

use super::accept::PendingReply;
use super::body::{BudgetPermit, BufferedBody};
use super::error_reply::ErrorReply;
use super::parse::Members;
use super::reply;
use super::request;
use super::{Handled, Inner};
use crate::message::Caller;
use crate::queue::StoreFailed;

/// The length of the shortest line that can be a message.
const LINE_BYTES_MIN: usize = 64;
/// The number of shorter lines that are answered out of the body's permit.
const SHORT_LINES_FREE: usize = 64;
/// The most shorter lines.
const SHORT_LINES_MAX: usize = 4096;
/// The longest reply to a shorter line.
const SHORT_REPLY_BYTES_MAX: usize = 256;

impl Inner {
    pub(super) async fn batch(&self, headers: &HeaderMap, body: BufferedBody, caller: Caller) -> Handled {
        let trace_id = request::trace_id(headers);
        let BufferedBody { bytes, permit } = body;
        let jsons = || bytes.split(|byte| *byte == b'\n').filter(|json| !json.trim_ascii().is_empty());
        let (count, messages) = (jsons().count(), bytes.len() / LINE_BYTES_MIN);
        let most = SHORT_LINES_MAX + messages;
        if count > most {
            return Err(ErrorReply::invalid(format_args!(
                "the batch has {count} lines in {} bytes, at most {most} are read",
                bytes.len()
            )));
        }
        let short = count.saturating_sub(SHORT_LINES_FREE + messages);
        let mut extra = BudgetPermit::default();
        if short > 0 {
            extra = Box::pin(self.replies.acquire_for_reply(short * SHORT_REPLY_BYTES_MAX, caller)).await;
        }
        let mut submissions = Vec::new();
        let mut lines = Vec::with_capacity(count);
        for json in jsons() {
            let line = Members::parse(json)
                .and_then(|mut members| members.line(&self.options.limits, caller, trace_id.clone()));
            lines.push(line.map_err(ErrorReply::from).map(|submission| {
                let pending = PendingReply::of(&submission);
                submissions.push(submission);
                pending
            }));
        }
        let sending = self.sending();
        let mut verdicts = Vec::new();
        if !submissions.is_empty() {
            let timer = self.metrics.accept_seconds.start_timer();
            verdicts = self.queue.accept(submissions, sending.rate).await?;
            timer.observe_duration();
        }
        let mut verdicts = verdicts.into_iter();
        let mut replies = Vec::with_capacity(lines.len() * 80);
        for (line, json) in lines.into_iter().zip(jsons()) {
            let result = match line {
                Ok(mut pending) => {
                    let verdict =
                        verdicts.next().ok_or_else(|| StoreFailed("a submission without a verdict".into()))?;
                    pending.evaluate(verdict, sending, &self.clock).map(|state| (pending, state))
                }
                Err(error) => Err(error),
            };
            match result {
                Ok((pending, state)) => reply::line(&mut replies, &pending.client_token, &state),
                Err(error) => {
                    reply::error_line(&mut replies, &error);
                    let subject = Members::parse(json).map(|mut members| members.subject()).unwrap_or_default();
                    self.record_rejection(&error.about(subject));
                }
            }
        }
        drop(bytes);
        let reply = reply::of_lines(permit.attach_to(extra.attach_to(replies)));
        Ok(reply::add_durable(reply, self.queue.copy()))
    }
}

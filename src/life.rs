//! A message's life in the log: a closed vocabulary of seven events, at level info.
//!
//! `accepted` → (`deferred` | `held`)* → `delivered` | `dead`. What operators do: `deleted`, before the `dead` of
//! that reason, and `redriven`, by which a dead message is queued again. The
//! event's name is the text of its line (`message`), and stands in `event` too. Every line carries the same names, so that
//! the way from a contact id to "sent at 14:03:07, here is Connect's id" is one query. A line contains exactly what the
//! arguments here allow: ids, labels, counts and the relay's own words; never contents, tokens or headers.

use std::time::Duration;

use tracing::info;

use crate::delivery::{Outcome, Reason, Receipt};
use crate::time::millis;

/// Whose life it is.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The relay's id of the message.
    pub message: &'a dyn std::fmt::Display,
    /// The conversation's label.
    pub conversation: &'a str,
    /// Its idempotency token.
    pub client_token: &'a str,
    /// The trace it belongs to.
    pub trace_id: Option<&'a str>,
}

/// It is on disk and acknowledged.
pub fn accepted(subject: Subject<'_>) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(event = "accepted", message_id = %message, conversation, client_token, trace_id, "accepted");
}

/// Connect has it; a disconnect also where Connect says (403) that the participant is gone already.
pub fn delivered(subject: Subject<'_>, attempt: u32, waited: Duration, http_status: Option<u16>, receipt: &Receipt) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "delivered",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        http_status,
        connect_id = receipt.id.as_deref(),
        connect_request_id = receipt.request_id.as_deref(),
        processing_status = receipt.processing_status.as_deref(),
        trace_id,
        "delivered"
    );
}

/// An attempt failed; it is tried again after `retry_in`, or, where there is none, when the destination takes messages
/// again: it is throttled, down, or not itself.
pub fn deferred(subject: Subject<'_>, attempt: u32, waited: Duration, outcome: &Outcome, retry_in: Option<Duration>) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "deferred",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        http_status = outcome.status(),
        connect_request_id = outcome.request_id(),
        reason = outcome.name(),
        why = outcome.why(),
        retry_in_ms = retry_in.map(millis),
        trace_id,
        "deferred"
    );
}

/// Its token was refused; its conversation waits so long for a renewed one.
pub fn held(subject: Subject<'_>, attempt: u32, waited: Duration, outcome: &Outcome, held_for: Duration) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "held",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        http_status = outcome.status(),
        connect_request_id = outcome.request_id(),
        reason = outcome.name(),
        held_for_ms = millis(held_for),
        trace_id,
        "held"
    );
}

/// It is a dead letter. `word` is the status and the request id of the answer that it died of, where it died of one.
pub fn dead(
    subject: Subject<'_>,
    attempt: u32,
    waited: Duration,
    word: (Option<u16>, Option<&str>),
    reason: Reason,
    maybe_delivered: bool,
) {
    if reason == Reason::Deleted {
        deleted(subject, attempt, waited, maybe_delivered);
    }
    let (http_status, connect_request_id) = word;
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "dead",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        http_status,
        connect_request_id,
        reason = reason.as_str(),
        maybe_delivered,
        trace_id,
        "dead"
    );
}

/// An operator made a dead letter of it: the act, before the `dead` line of every dead letter.
fn deleted(subject: Subject<'_>, attempt: u32, waited: Duration, maybe_delivered: bool) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "deleted",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        reason = Reason::Deleted.as_str(),
        maybe_delivered,
        trace_id,
        "deleted"
    );
}

/// An operator queued it again. `reason` is why it was dead; `edited`: it has other contents, and so a new ClientToken.
pub fn redriven(subject: Subject<'_>, attempt: u32, waited: Duration, reason: Option<Reason>, edited: bool) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(
        event = "redriven",
        message_id = %message,
        conversation,
        client_token,
        attempt,
        waited_ms = millis(waited),
        reason = reason.map(Reason::as_str),
        edited,
        trace_id,
        "redriven"
    );
}

//! The log lines of a message: a closed set of seven events, at level info.
//!
//! `accepted` → (`deferred` | `held`)* → `delivered` | `dead`. `deleted` comes before the `dead` of an operator's act, and
//! `redriven` when a dead message is queued again: by an operator, or because its bot sent it again with the renewed token
//! that it was missing. The event's name is the text of its line
//! (`message`), and also the value of `event`. Every line uses the same names, so that one query leads from a contact
//! id to "sent at 14:03:07, with this id of Connect". A line contains only the arguments of the functions below: ids,
//! labels, counts and the relay's own texts; never contents or tokens, and of headers only the conversation key and the
//! trace id.

use std::time::Duration;

use tracing::info;

use crate::delivery::{Outcome, Reason, Receipt};
use crate::time::millis;

/// The message of a line.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// The relay's id of the message.
    pub message: &'a dyn std::fmt::Display,
    /// The conversation's label.
    pub conversation: &'a str,
    /// The message's idempotency token.
    pub client_token: &'a str,
    /// The message's trace.
    pub trace_id: Option<&'a str>,
}

/// The message is on disk and acknowledged.
pub fn accepted(subject: Subject<'_>) {
    let Subject { message, conversation, client_token, trace_id } = subject;
    info!(event = "accepted", message_id = %message, conversation, client_token, trace_id, "accepted");
}

/// Connect has the message; for a disconnect also if Connect answers (403) that the participant is gone already.
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

/// An attempt failed. The message is tried again after `retry_in`, or, without one, when the destination accepts
/// messages again.
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

/// The token was refused; the conversation waits for a renewed one for `held_for`.
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

/// The message is a dead letter. `word` has the status and the request id of the answer that caused it, if there was
/// one.
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

/// An operator made a dead letter of the message. This line is before the `dead` line that every dead letter has.
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

/// The message is queued again. `reason` is its last cause of death; `edited` means new contents and
/// ClientToken.
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

//! One submission: stored on disk, and then, if requested, its outcome.
//!
//! ```text
//! body, headers ─▶ Submission ─▶ queue.accept ─▶ on disk ─┬─ no wait ───────────────▶ 202 (a repeat: its state)
//!                                     │                   └─ queue.outcome, at most ▶ 200, 202 or the error
//!                                     └─ not stored ───────────────────────────────▶ 400 … 500
//! ```
//!
//! A wait never changes the promise: at its end, when the API closes and after a failure of the store, the message is
//! on disk, and the reply says so. The body's permit is returned before a wait.

use std::time::Duration;

use hyper::header::HeaderMap;

use super::body::BufferedBody;
use super::error_reply::{ErrorReply, SendingState};
use super::parse::Members;
use super::reply::{self, Outlook};
use super::request::{self, Identity, Preference, Wait};
use super::{Handled, Inner, applied, caller};
use crate::message::{Body, ClientToken, Submission};
use crate::queue::{MessageState, PendingOutcome, Status, StoreFailed, Verdict};
use crate::serve::Peer;
use crate::time::Clock;

/// The data of an accepted submission that its reply needs.
pub(super) struct PendingReply {
    pub(super) client_token: ClientToken,
    lifetime: Option<Duration>,
}

impl PendingReply {
    pub(super) fn of(submission: &Submission) -> PendingReply {
        PendingReply { client_token: submission.client_token.clone(), lifetime: submission.lifetime }
    }

    /// Evaluates the queue's verdict.
    pub(super) fn evaluate(
        &mut self,
        verdict: Verdict,
        sending: SendingState,
        clock: &Clock,
    ) -> Result<MessageState, ErrorReply> {
        match verdict {
            Verdict::Accepted { state, stored_token, .. } => {
                if let Some(token) = stored_token {
                    self.client_token = token;
                }
                Ok(state)
            }
            Verdict::Rejected(rejection) => {
                let error = ErrorReply::of_rejection(&rejection, sending, self.lifetime, clock);
                Err(error.about_token(&self.client_token))
            }
        }
    }
}

impl Inner {
    /// SendMessage.
    pub(super) async fn message(&self, headers: &HeaderMap, body: BufferedBody, peer: Peer) -> Handled {
        let mut members = Members::parse(&body.bytes)?;
        let message = members.message(&self.options.limits);
        let message = message.map_err(|wrong| ErrorReply::from(wrong).about(members.subject()))?;
        let submission = submission(headers, message, members.client_token()?, peer)?;
        drop(members);
        self.submit(submission, headers, body, peer).await
    }

    /// DisconnectParticipant.
    pub(super) async fn disconnect(&self, headers: &HeaderMap, body: BufferedBody, peer: Peer) -> Handled {
        let client_token = Members::parse(&body.bytes)?.client_token()?;
        let submission = submission(headers, Body::Disconnect, client_token, peer)?;
        self.submit(submission, headers, body, peer).await
    }

    /// Submits to the queue, waits if requested, and answers.
    pub(super) async fn submit(
        &self,
        submission: Submission,
        headers: &HeaderMap,
        body: BufferedBody,
        peer: Peer,
    ) -> Handled {
        let mut pending = PendingReply::of(&submission);
        let bare = submission.body == Body::Disconnect;
        let sending = self.sending();
        let wait = self.wait(Preference::of(headers), self.reply_mode(peer));
        let timer = self.metrics.accept_seconds.start_timer();
        let accepted = self.accept(submission, sending, &wait).await;
        timer.observe_duration();
        drop(body);
        let (verdict, outcome) =
            accepted.map_err(|failed| ErrorReply::from(failed).about_token(&pending.client_token))?;
        let state = pending.evaluate(verdict, sending, &self.clock)?;
        let state = self.outcome(state, outcome, &wait).await;
        let outlook = self.outlook(&state).map(|outlook| Outlook { note: wait.note(), ..outlook });
        let reply = reply::of_state(&state, &pending.client_token, outlook, bare);
        Ok(applied(reply::add_durable(reply, self.queue.copy()), wait.applied))
    }

    /// Accepts a submission. If the caller is going to wait, it waits from then on: that saves a second request. (While
    /// Connect is down, an implied wait does not begin.)
    async fn accept(
        &self,
        submission: Submission,
        SendingState { rate, down }: SendingState,
        wait: &Wait,
    ) -> Result<(Verdict, Option<PendingOutcome>), StoreFailed> {
        if !wait.span.is_zero() && (!wait.implied || !down) {
            let (verdict, outcome) = self.queue.accept_and_wait(submission, rate).await?;
            return Ok((verdict, Some(outcome)));
        }
        let verdict = self.queue.accept(vec![submission], rate).await?.pop();
        Ok((verdict.ok_or_else(|| StoreFailed("a submission without a verdict".into()))?, None))
    }

    /// Waits for the outcome of a queued message; `waiting` is the wait that its acceptance began, if it did. An implied wait
    /// does not begin, and ends, if no outcome can come within it.
    pub(super) async fn outcome(
        &self,
        state: MessageState,
        waiting: Option<PendingOutcome>,
        wait: &Wait,
    ) -> MessageState {
        if wait.span.is_zero() || !matches!(state.status, Status::Queued { .. }) {
            return state;
        }
        let futile = wait.implied && self.is_futile(&state, wait.span);
        if futile && waiting.is_none() {
            return state;
        }
        let ended = async {
            if !futile {
                tokio::select! {
                    () = tokio::time::sleep(wait.span) => {}
                    () = self.becomes_futile(state.id, wait) => {}
                }
            }
        };
        let outcome = async {
            match waiting {
                Some(waiting) => self.queue.outcome_of(state.id, waiting, ended).await,
                None => self.queue.outcome_until(state.id, ended).await,
            }
        };
        let later = tokio::select! {
            later = outcome => later.ok().flatten(),
            () = self.drain_state.waits_end() => None,
        };
        let state = later.unwrap_or(state);
        if futile {
            return state;
        }
        match state.status {
            Status::Queued { .. } => self.metrics.waits_queued.inc(),
            Status::Delivered(_) => self.metrics.waits_delivered.inc(),
            Status::Dead { .. } => self.metrics.waits_dead.inc(),
        }
        state
    }
}

/// Builds the submission from the members and the headers.
pub(super) fn submission(
    headers: &HeaderMap,
    body: Body,
    client_token: ClientToken,
    peer: Peer,
) -> Result<Submission, ErrorReply> {
    let read = || Ok((Identity::of(headers)?, request::replaces(headers)?, request::lifetime(headers)?));
    let read = read().map_err(|error: ErrorReply| error.about_token(&client_token));
    let (Identity { token, conversation }, replaces, lifetime) = read?;
    Ok(Submission {
        body,
        client_token,
        connection_token: token,
        conversation,
        replaces,
        lifetime,
        caller: caller(peer),
        trace_id: request::trace_id(headers),
    })
}

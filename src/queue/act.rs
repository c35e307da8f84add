//! What the writer is asked to do.

use std::time::Duration;

use tokio::sync::oneshot;

use super::operate::Operation;
use super::rows::{Hash, Hasher};
use super::{Asker, Backlog, Found, Lease, LeaseRequest, MessageId, Overview, Settled, State, Verdict, Work};
use crate::delivery::Disposition;
use crate::message::{Body, Caller, ClientToken, ConnectionToken, Submission};
use crate::pacer::Kept;

/// Something to carry out.
pub enum Act {
    Accept { prepared: Vec<Prepared>, rate: f64, reply: oneshot::Sender<Vec<Verdict>> },
    Await { id: MessageId, reply: oneshot::Sender<Option<State>> },
    Look { id: MessageId, reply: oneshot::Sender<Option<State>> },
    Find { asked: Asked, client_token: ClientToken, reply: oneshot::Sender<Found> },
    IsIdle { asked: Asked, reply: oneshot::Sender<bool> },
    Remember { participant: Hash, hash: Hash, token: ConnectionToken, reply: oneshot::Sender<()> },
    Backlog { of: Option<Caller>, reply: oneshot::Sender<Backlog> },
    Overview { reply: oneshot::Sender<Overview> },
    Pause { why: String, reply: oneshot::Sender<()> },
    Resume { reply: oneshot::Sender<()> },
    Lease { request: LeaseRequest, reply: oneshot::Sender<Work> },
    Operate(Operation),
    Settle { lease: Box<Lease>, disposition: Disposition, learned: Option<Kept>, reply: oneshot::Sender<Settled> },
}

/// A submission with all that can be computed before the writer's turn comes.
pub struct Prepared {
    pub body: Body,
    pub client_token: ClientToken,
    pub asked: Asked,
    pub bearer: ConnectionToken,
    pub replaces: Option<Hash>,
    pub lifetime: Option<Duration>,
    pub trace_id: Option<Box<str>>,
    pub contents: Hash,
    pub label: Box<str>,
}

impl Prepared {
    pub fn new(submission: Submission, hasher: &Hasher) -> Prepared {
        let Submission { body, client_token, connection_token, conversation, replaces, lifetime, caller, trace_id } =
            submission;
        let label = crate::message::label(conversation.as_ref(), &connection_token);
        let contents = hasher.contents(&body);
        let replaces = replaces.map(|token| hasher.token(&token));
        let asker = Asker { token: connection_token, conversation, caller };
        let asked = Asked::new(&asker, hasher);
        Prepared { body, client_token, asked, bearer: asker.token, replaces, lifetime, trace_id, contents, label }
    }
}

/// Who speaks of which conversation, as hashes.
#[derive(Clone, Copy)]
pub struct Asked {
    pub token: Hash,
    /// The conversation that the key names.
    pub keyed: Option<Hash>,
    pub caller: Caller,
}

impl Asked {
    pub fn new(asker: &Asker, hasher: &Hasher) -> Asked {
        let keyed = asker.conversation.as_ref().map(|key| hasher.keyed_conversation(asker.caller, key.as_str()));
        Asked { token: hasher.token(&asker.token), keyed, caller: asker.caller }
    }
}

//! Submissions and callers with keyed hashes in the place of names and tokens, made before they reach the queue's thread.

use std::time::Duration;

use super::api::Asker;
use super::rows::{Hash, Hasher};
use crate::message::{Body, Caller, ConnectionToken, Submission};

/// A submission with everything that can be computed before its turn on the queue's thread.
pub struct HashedSubmission {
    pub body: Body,
    pub client_token: String,
    pub asked: CallerKeys,
    pub bearer: ConnectionToken,
    pub replaces: Option<Hash>,
    pub lifetime: Option<Duration>,
    pub trace_id: Option<String>,
    pub contents: Hash,
    pub label: String,
}

impl HashedSubmission {
    pub fn new(submission: Submission, hasher: &Hasher) -> HashedSubmission {
        let Submission { body, client_token, connection_token, conversation, replaces, lifetime, caller, trace_id } =
            submission;
        let label = crate::message::label(conversation.as_ref(), &connection_token);
        let contents = hasher.contents(&body);
        let replaces = replaces.map(|token| hasher.token(&token));
        let asker = Asker { token: connection_token, conversation, caller };
        let asked = CallerKeys::new(&asker, hasher);
        HashedSubmission {
            body,
            client_token: client_token.into(),
            asked,
            bearer: asker.token,
            replaces,
            lifetime,
            trace_id: trace_id.map(Into::into),
            contents,
            label: label.into(),
        }
    }
}

/// The names in a request about a conversation, as hashes.
#[derive(Clone, Copy)]
pub struct CallerKeys {
    pub token: Hash,
    /// The conversation that the caller's key names.
    pub keyed: Option<Hash>,
    pub caller: Caller,
}

impl CallerKeys {
    pub fn new(asker: &Asker, hasher: &Hasher) -> CallerKeys {
        let keyed = asker.conversation.as_ref().map(|key| hasher.keyed_conversation(asker.caller, key.as_str()));
        CallerKeys { token: hasher.token(&asker.token), keyed, caller: asker.caller }
    }
}

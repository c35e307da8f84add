//! The death of a message.

use super::rows::Hash;
use crate::delivery::{Reason, ServiceError};

/// The reason and the circumstances of a death.
pub struct Burial {
    pub reason: Reason,
    pub error: ServiceError,
    pub maybe_delivered: bool,
    /// The token whose refusal killed it, or the one it came with.
    pub token: Hash,
    /// The queue logs the death. Otherwise the caller of `settle` logs it.
    pub logged: bool,
}

impl Burial {
    /// The death of a message whose lifetime ended.
    pub fn expired(token: Hash) -> Burial {
        let error = ServiceError {
            status: 410,
            code: "GoneException".into(),
            text: "connect-relay: the message's lifetime ended before it could be delivered".into(),
            request_id: None,
        };
        Burial { reason: Reason::Expired, error, maybe_delivered: false, token, logged: true }
    }
}

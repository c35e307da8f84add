//! Replies to operators, and the bodies of their requests.

use hyper::StatusCode;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::serve::{Reply, reply};

/// The body of an error reply.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The reason.
    #[serde(rename = "Error")]
    pub error: String,
}

/// An error reply to an operator.
pub(super) struct ErrorReply(pub(super) StatusCode, pub(super) String);

/// Parses a request's body; an empty body has no members. serde would also fill the members from an array, by their place.
pub(super) fn parse_body<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ErrorReply> {
    match body.trim_ascii().first() {
        None => return Ok(T::default()),
        Some(b'{') => {}
        Some(_) => return Err(invalid("the body: a JSON object is needed".into())),
    }
    serde_json::from_slice(body).map_err(|error| invalid(format!("the body: {error}")))
}

pub(super) fn invalid(what: String) -> ErrorReply {
    ErrorReply(StatusCode::BAD_REQUEST, what)
}

pub(super) fn error_reply(status: StatusCode, why: &str) -> Reply {
    json(status, &ErrorBody { error: format!("connect-relay: {why}") })
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Reply {
    // Plain structs of numbers and text: this cannot fail.
    reply(status, "application/json", serde_json::to_vec(body).unwrap_or_default())
}

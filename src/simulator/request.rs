//! A client's request, parsed and checked against the limits of AWS's service model.

use hyper::Method;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::message::{CLIENT_TOKEN_CHARS_MAX, ContentType};

/// The simulated operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    /// CreateParticipantConnection
    Connection,
    /// SendMessage
    Message,
    /// SendEvent
    Event,
    /// DisconnectParticipant
    Disconnect,
    /// GetTranscript
    Transcript,
}

impl Operation {
    /// The operation of that route.
    pub(super) fn of(method: &Method, path: &str) -> Option<Operation> {
        match (method, path) {
            (&Method::POST, "/participant/connection") => Some(Operation::Connection),
            (&Method::POST, "/participant/message") => Some(Operation::Message),
            (&Method::POST, "/participant/event") => Some(Operation::Event),
            (&Method::POST, "/participant/disconnect") => Some(Operation::Disconnect),
            (&Method::POST, "/participant/transcript") => Some(Operation::Transcript),
            _ => None,
        }
    }
}

/// The members of a body; the operation decides which of them count.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Members {
    /// SendMessage, SendEvent.
    pub content_type: Option<String>,
    /// SendMessage, SendEvent.
    pub content: Option<String>,
    /// All but CreateParticipantConnection.
    pub client_token: Option<String>,
    /// CreateParticipantConnection.
    #[serde(rename = "Type")]
    pub types: Option<Vec<String>>,
}

/// The longest ContentType and Content of the service model, in characters.
const CONTENT_TYPE_CHARS_MAX: usize = 100;
const CONTENT_CHARS_MAX: usize = 16384;

impl Members {
    /// Reads a body and checks it; the error is the text of a ValidationException, all violations in one.
    pub(super) fn parse(operation: Operation, body: &[u8]) -> Result<Members, String> {
        let members: Members = members_of(body)?;
        let violations = members.violations(operation);
        match violations.len() {
            0 => Ok(members),
            1 => Err(format!("1 validation error detected: {}", violations[0])),
            more => Err(format!("{more} validation errors detected: {}", violations.join("; "))),
        }
    }

    fn violations(&self, operation: Operation) -> Vec<String> {
        let mut found = Vec::new();
        let (content_type, content) = (self.content_type.as_deref(), self.content.as_deref());
        if matches!(operation, Operation::Message | Operation::Event) {
            check_length(&mut found, "contentType", content_type, 1, CONTENT_TYPE_CHARS_MAX);
            check_length(&mut found, "content", content, 1, CONTENT_CHARS_MAX);
            check_length(&mut found, "clientToken", self.client_token.as_deref(), 0, CLIENT_TOKEN_CHARS_MAX);
            if content_type.is_none() {
                found.push(violation("contentType", "Member must not be null"));
            }
        }
        match operation {
            Operation::Message => {
                if content.is_none() {
                    found.push(violation("content", "Member must not be null"));
                }
                if content_type.is_some_and(|name| ContentType::parse(name).is_none()) {
                    let names = ContentType::ALL.map(ContentType::as_str).join(", ");
                    found.push(violation("contentType", &format!("Member must satisfy enum value set: [{names}]")));
                }
            }
            Operation::Event => {
                if content_type.is_some_and(|name| !name.starts_with("application/vnd.amazonaws.connect.event.")) {
                    found.push(violation(
                        "contentType",
                        "Member must be one of application/vnd.amazonaws.connect.event.*",
                    ));
                }
            }
            Operation::Connection => {
                let known = |name: &String| matches!(name.as_str(), "WEBSOCKET" | "CONNECTION_CREDENTIALS");
                if !self.types.iter().flatten().all(known) {
                    let constraint = "Member must satisfy enum value set: [WEBSOCKET, CONNECTION_CREDENTIALS]";
                    found.push(violation("type", constraint));
                }
            }
            Operation::Disconnect => {
                check_length(&mut found, "clientToken", self.client_token.as_deref(), 0, CLIENT_TOKEN_CHARS_MAX);
            }
            // It has members of its own.
            Operation::Transcript => {}
        }
        found
    }

    /// The idempotency token; an empty one counts as none.
    pub(super) fn idempotency(&self) -> Option<&str> {
        self.client_token.as_deref().filter(|token| !token.is_empty())
    }
}

/// Reads the members of a body; an empty one has none. The error is the text of a ValidationException.
pub(super) fn members_of<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let body = if body.is_empty() { b"{}" } else { body };
    // Serde would take an array for a struct too.
    let members = serde_json::from_slice(body).map(Value::Object).and_then(serde_json::from_value);
    members.map_err(|error| format!("The request body is not as expected: {error}"))
}

fn check_length(found: &mut Vec<String>, member: &str, value: Option<&str>, least: usize, most: usize) {
    let Some(chars) = value.map(|text| text.chars().count()) else { return };
    if chars < least {
        found.push(violation(member, &format!("Member must have length greater than or equal to {least}")));
    }
    if chars > most {
        found.push(violation(member, &format!("Member must have length less than or equal to {most}")));
    }
}

fn violation(member: &str, constraint: &str) -> String {
    format!("Value at '{member}' failed to satisfy constraint: {constraint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(operation: Operation, body: &str) -> Result<(), String> {
        Members::parse(operation, body.as_bytes()).map(|_| ())
    }

    fn message(content_type: &str, content: &str, client_token: &str) -> String {
        serde_json::json!({"ContentType": content_type, "Content": content, "ClientToken": client_token}).to_string()
    }

    #[test]
    fn lengths_are_those_of_the_service_model_in_characters() {
        let fits = |body: String| check(Operation::Message, &body).is_ok();
        assert!(fits(message("text/plain", &"é".repeat(16384), &"é".repeat(500))));
        assert!(!fits(message("text/plain", &"é".repeat(16385), "")));
        assert!(!fits(message("text/plain", "", "")));
        assert!(!fits(message("text/plain", "hello", &"é".repeat(501))));
        assert!(!fits(message("", "hello", "")));
    }

    #[test]
    fn text_names_every_violation() {
        assert_eq!(
            check(Operation::Message, r#"{"ContentType":"text/html"}"#).unwrap_err(),
            "2 validation errors detected: \
             Value at 'content' failed to satisfy constraint: Member must not be null; \
             Value at 'contentType' failed to satisfy constraint: Member must satisfy enum value set: [text/plain, \
             text/markdown, application/json, application/vnd.amazonaws.connect.message.interactive.response]"
        );
    }

    #[test]
    fn each_operation_checks_its_own_members() {
        for (operation, body, fits) in [
            (Operation::Disconnect, "", true),
            (Operation::Disconnect, "{}", true),
            (Operation::Disconnect, r#"{"ClientToken":"1","Other":[1]}"#, true),
            (
                Operation::Connection,
                r#"{"Type":["WEBSOCKET","CONNECTION_CREDENTIALS"],"ConnectParticipant":true}"#,
                true,
            ),
            (Operation::Connection, r#"{"Type":["PIGEON"]}"#, false),
            (Operation::Event, r#"{"ContentType":"application/vnd.amazonaws.connect.event.typing"}"#, true),
            (Operation::Event, r#"{"ContentType":"text/plain"}"#, false),
            (Operation::Event, "{}", false),
            (Operation::Message, "", false),
            (Operation::Message, r#"["text/plain","hello"]"#, false),
            (Operation::Disconnect, "[]", false),
            (Operation::Message, "{", false),
            (Operation::Message, r#"{"ContentType":"text/plain","Content":7}"#, false),
            (Operation::Message, r#"{"ContentType":"text/plain","Content":"\ud800"}"#, false),
        ] {
            assert_eq!(check(operation, body).is_ok(), fits, "{operation:?} {body}");
        }
    }
}

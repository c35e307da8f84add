//! GetTranscript: the accepted messages and events of a chat, for bots that read their own messages.
//!
//! Each participant token, and each ConnectionToken that was not issued here, is a chat of its own, with one participant.
//! The last [`KEPT_MAX`] messages and events of all chats are kept in memory.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::request::{Members, Operation, members_of};

/// The most messages and events that are kept, of all chats.
const KEPT_MAX: usize = 10_000;
/// The default and the largest number of items on a page, as AWS has them.
const RESULTS: usize = 15;
const RESULTS_MAX: usize = 100;

/// A participant of a chat: its number, in the order of appearance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Participant(pub(super) u64);

/// The transcripts of all chats.
#[derive(Debug, Default)]
pub(super) struct Transcripts {
    items: VecDeque<(Participant, Item)>,
    /// The number of items that were dropped: the number of the first one kept.
    dropped: usize,
}

/// An item of a transcript.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Item {
    absolute_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    content_type: String,
    id: String,
    #[serde(rename = "Type")]
    kind: &'static str,
    display_name: &'static str,
    participant_role: &'static str,
}

/// The members of the request, as AWS has them.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    max_results: Option<usize>,
    next_token: Option<String>,
    scan_direction: Option<String>,
    sort_order: Option<String>,
}

/// The reply.
#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Page<'a> {
    initial_contact_id: String,
    transcript: Vec<&'a Item>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
}

impl Item {
    pub(super) fn of(id: Uuid, absolute_time: String, operation: Operation, members: &Members) -> Item {
        Item {
            absolute_time,
            content: members.content.clone(),
            content_type: members.content_type.clone().unwrap_or_default(),
            id: id.to_string(),
            kind: if operation == Operation::Message { "MESSAGE" } else { "EVENT" },
            display_name: "Bot",
            participant_role: "CUSTOM_BOT",
        }
    }
}

impl Transcripts {
    /// Adds an item to a chat.
    pub(super) fn add(&mut self, participant: Participant, item: Item) {
        if self.items.len() == KEPT_MAX {
            self.items.pop_front();
            self.dropped += 1;
        }
        self.items.push_back((participant, item));
    }

    /// The page of a chat that the body asks for, as JSON. Without members: the last items, oldest first.
    pub(super) fn page(&self, participant: Participant, body: &[u8]) -> Result<String, String> {
        let wanted: Wanted = members_of(body)?;
        let most = wanted.max_results.unwrap_or(RESULTS);
        if most > RESULTS_MAX {
            return Err(format!(
                "1 validation error detected: Value at 'maxResults' failed to satisfy constraint: Member must have value \
                 less than or equal to {RESULTS_MAX}"
            ));
        }
        let forward = choice("scanDirection", wanted.scan_direction.as_deref(), "BACKWARD", "FORWARD")?;
        let descending = choice("sortOrder", wanted.sort_order.as_deref(), "ASCENDING", "DESCENDING")?;
        let from = wanted.next_token.as_deref().map(str::parse::<usize>).transpose();
        let from =
            from.map_err(|_| "1 validation error detected: Value at 'nextToken' was not issued here".to_owned())?;
        let own = self.items.iter().enumerate().filter(|(_, (of, _))| *of == participant);
        let own = own.map(|(index, (_, item))| (self.dropped + index, item));
        // The number of an item that a token holds is the first one of the next page.
        let mut found: Vec<_> = if forward {
            own.filter(|(number, _)| from.is_none_or(|from| *number >= from)).take(most.max(1) + 1).collect()
        } else {
            own.rev().filter(|(number, _)| from.is_none_or(|from| *number <= from)).take(most.max(1) + 1).collect()
        };
        let next_token =
            (found.len() > most.max(1)).then(|| found.pop()).flatten().map(|(number, _)| number.to_string());
        if forward == descending {
            found.reverse();
        }
        let transcript = found.into_iter().map(|(_, item)| item).collect();
        let page = Page { initial_contact_id: format!("simulated-{}", participant.0), transcript, next_token };
        serde_json::to_string(&page).map_err(|error| error.to_string())
    }
}

/// True for the second of two values, false for the first, which is the default.
fn choice(member: &str, given: Option<&str>, default: &str, other: &str) -> Result<bool, String> {
    match given {
        None => Ok(false),
        Some(word) if word == default => Ok(false),
        Some(word) if word == other => Ok(true),
        Some(_) => Err(format!(
            "1 validation error detected: Value at '{member}' failed to satisfy constraint: Member must satisfy enum value \
             set: [{default}, {other}]"
        )),
    }
}

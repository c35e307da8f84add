//! The audit compares the messages that the bots submitted with the Participant Service's ledger. Pure.
//!
//! A message is identified by its ConnectionToken and ClientToken, and must have arrived with its original contents.
//! Order is checked within a conversation, by first arrivals.

use std::collections::HashMap;

use crate::simulator::Entry;

use super::bots::Conversation;

/// The result of the comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Audit {
    /// Messages that the relay acknowledged.
    pub accepted: u64,
    /// Of the submitted messages, those that arrived at least once.
    pub delivered: u64,
    /// Acknowledged messages that never arrived.
    pub lost: u64,
    /// Arrivals of a message that had arrived before.
    pub duplicated: u64,
    /// Messages that arrived after a later one of their conversation.
    pub out_of_order: u64,
    /// Arrivals that no bot has written.
    pub forged: u64,
    /// The first few errors.
    pub examples: Vec<String>,
}

const EXAMPLES_MAX: usize = 5;

impl Audit {
    /// Compares the conversations with the ledger.
    pub(super) fn of(conversations: &[Conversation], ledger: &[Entry]) -> Audit {
        let mut audit = Audit::default();
        let written: HashMap<(&str, &str), (usize, usize)> = conversations
            .iter()
            .enumerate()
            .flat_map(|(at, conversation)| {
                let token = conversation.token.as_str();
                let sent = conversation.sent.iter().enumerate();
                sent.map(move |(place, sent)| ((token, sent.client_token.as_str()), (at, place)))
            })
            .collect();
        let mut arrived: Vec<Vec<bool>> = conversations.iter().map(|one| vec![false; one.sent.len()]).collect();
        let mut latest: Vec<Option<usize>> = vec![None; conversations.len()];

        for entry in ledger {
            let key = (entry.connection_token.as_str(), entry.client_token.as_deref().unwrap_or_default());
            let genuine = written.get(&key).filter(|(at, place)| {
                entry.content_type == "text/plain" && entry.content == conversations[*at].sent[*place].content
            });
            let Some(&(at, place)) = genuine else {
                audit.forged += 1;
                audit.remember(|| format!("Connect's message {} was written by no bot", entry.id));
                continue;
            };
            if std::mem::replace(&mut arrived[at][place], true) {
                audit.duplicated += 1;
                audit.remember(|| format!("{} arrived again, as {}", name(at, place), entry.id));
                continue;
            }
            audit.delivered += 1;
            if latest[at].is_some_and(|latest| latest > place) {
                audit.out_of_order += 1;
                audit.remember(|| format!("{} arrived after a later one", name(at, place)));
            }
            latest[at] = latest[at].max(Some(place));
        }

        for (at, conversation) in conversations.iter().enumerate() {
            for (place, sent) in conversation.sent.iter().enumerate().filter(|(_, sent)| sent.acknowledged) {
                audit.accepted += 1;
                if !arrived[at][place] {
                    audit.lost += 1;
                    audit.remember(|| format!("{} ({}) never arrived", name(at, place), sent.client_token));
                }
            }
        }
        audit
    }

    /// True if every acknowledged message arrived once, in order, and no other message did.
    pub(super) fn passed(&self) -> bool {
        self.lost == 0 && self.duplicated == 0 && self.out_of_order == 0 && self.forged == 0
    }

    fn remember(&mut self, example: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example());
        }
    }
}

fn name(conversation: usize, place: usize) -> String {
    format!("message {} of conversation {}", place + 1, conversation + 1)
}

#[cfg(test)]
mod tests {
    use super::super::bots::Sent;
    use super::*;

    /// Two conversations of three messages; the ClientTokens of both are the same on purpose.
    fn conversations() -> Vec<Conversation> {
        ["alice", "bob"]
            .map(|token| Conversation {
                token: token.to_owned(),
                sent: ["1", "2", "3"]
                    .map(|number| Sent {
                        client_token: number.to_owned(),
                        content: format!("{token} {number}"),
                        acknowledged: true,
                    })
                    .into(),
            })
            .into()
    }

    fn entry(token: &str, client_token: &str) -> Entry {
        Entry {
            id: "id".to_owned(),
            client_token: Some(client_token.to_owned()),
            connection_token: token.to_owned(),
            content_type: "text/plain".to_owned(),
            content: format!("{token} {client_token}"),
            ..Entry::default()
        }
    }

    /// Each conversation in order, the two interleaved.
    fn ledger() -> Vec<Entry> {
        [("alice", "1"), ("bob", "1"), ("bob", "2"), ("alice", "2"), ("alice", "3"), ("bob", "3")]
            .map(|(token, client_token)| entry(token, client_token))
            .into()
    }

    fn verdict(ledger: &[Entry]) -> [u64; 6] {
        let audit = Audit::of(&conversations(), ledger);
        assert_eq!(audit.passed(), audit.examples.is_empty());
        [audit.accepted, audit.delivered, audit.lost, audit.duplicated, audit.out_of_order, audit.forged]
    }

    #[test]
    fn everything_once_and_in_order_passes() {
        assert_eq!(verdict(&ledger()), [6, 6, 0, 0, 0, 0]);
        assert!(Audit::of(&conversations(), &ledger()).passed());
    }

    #[test]
    fn lost_message_is_caught() {
        for missing in 0..6 {
            let mut ledger = ledger();
            ledger.remove(missing);
            assert_eq!(verdict(&ledger), [6, 5, 1, 0, 0, 0]);
            assert!(!Audit::of(&conversations(), &ledger).passed());
        }
        assert_eq!(verdict(&[]), [6, 0, 6, 0, 0, 0]);
    }

    #[test]
    fn duplicated_message_is_caught_wherever_it_comes_again() {
        for (from, to) in [(0, 1), (0, 6), (5, 6), (3, 5)] {
            let mut ledger = ledger();
            ledger.insert(to, ledger[from].clone());
            assert_eq!(verdict(&ledger), [6, 6, 0, 1, 0, 0]);
            assert!(!Audit::of(&conversations(), &ledger).passed());
        }
    }

    #[test]
    fn swapped_messages_are_caught_within_a_conversation_and_free_between_two() {
        for (one, other, out_of_order) in [(0, 3, 1), (3, 4, 1), (0, 4, 2), (0, 1, 0), (4, 5, 0)] {
            let mut ledger = ledger();
            ledger.swap(one, other);
            assert_eq!(verdict(&ledger), [6, 6, 0, 0, out_of_order, 0], "{one} and {other}");
        }
    }

    #[test]
    fn forged_message_is_caught_in_each_of_its_members() {
        let changes: [fn(&mut Entry); 5] = [
            |entry| entry.connection_token = "mallory".to_owned(),
            |entry| entry.client_token = Some("9".to_owned()),
            |entry| entry.client_token = None,
            |entry| entry.content = "pay mallory".to_owned(),
            |entry| entry.content_type = "application/json".to_owned(),
        ];
        for change in changes {
            let mut ledger = ledger();
            let mut forged = ledger[5].clone();
            change(&mut forged);
            ledger.push(forged);
            assert_eq!(verdict(&ledger), [6, 6, 0, 0, 0, 1]);
            change(&mut ledger[5]);
            assert_eq!(verdict(&ledger), [6, 5, 1, 0, 0, 2], "what arrives changed has not arrived");
        }
        let mut ledger = ledger();
        ledger[0].connection_token = "bob".to_owned();
        assert_eq!(verdict(&ledger), [6, 5, 1, 0, 0, 1], "another conversation's message with this one's contents");
    }

    #[test]
    fn message_that_was_never_acknowledged_may_arrive_or_not() {
        let mut conversations = conversations();
        conversations[1].sent[2].acknowledged = false;
        let mut ledger = ledger();
        assert!(Audit::of(&conversations, &ledger).passed());
        ledger.pop();
        let audit = Audit::of(&conversations, &ledger);
        assert!(audit.passed());
        assert_eq!((audit.accepted, audit.delivered), (5, 5));
    }

    #[test]
    fn examples_are_few_and_name_the_message() {
        let audit = Audit::of(&conversations(), &[]);
        assert_eq!(audit.examples.len(), EXAMPLES_MAX);
        assert_eq!(audit.examples[4], "message 2 of conversation 2 (2) never arrived");
    }
}

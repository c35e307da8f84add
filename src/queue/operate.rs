//! What operators do to messages: look at them, redrive what is dead, delete what is queued.
//!
//! | act | on what is queued | in flight | dead | delivered, or kept no longer |
//! | --- | --- | --- | --- | --- |
//! | redrive | refused | refused | queued again, at its old place | refused |
//! | delete | dead, `deleted` | refused | dead, `deleted` | not known |
//!
//! Nothing here looks through the whole store in one act. A [`Cursor`] goes through what is queued, pack by pack, in the
//! order of acceptance (what was queued again comes last), and then through the dead letters, by their numbers. One act
//! looks at [`LOOKS`] messages at the most, writes about [`WRITTEN_MAX`] bytes, and says how far it came; between two of
//! them others have their turn. What changes meanwhile may be met twice or not at all. An id names a message by its sequence number, of which packs have no index:
//! [`Queue::seek`] finds it in the same way.
//!
//! An operator names a conversation as the log does, by its label, because the store knows keys only as hashes of their
//! callers: two users' equal keys are both meant.
//!
//! A redriven message keeps its id, its lifetime's length and what its repeats are compared with; its attempts begin anew.
//! Where it may have arrived it keeps the token that it was sent with, as ever. Other contents make it another message to
//! Connect, with a ClientToken of its own, but not to the bot: its entry stays the one of the ClientToken that the bot
//! chose. In another token's conversation it gets that one's entry as well, and its repeats in the conversation that it
//! left are answered with what it died of there.

mod change;
mod look;

use tokio::sync::oneshot;

use super::act::Act;
use super::queued::Queued;
use super::rows::{Dead, ErrorRow, Outcome, Record};
use super::{Full, MessageId, Queue, StoreFailed, Writer};
use crate::delivery::{Reason, ServiceError};
use crate::message::{Body, ConnectionToken};
use crate::time::Timestamp;

/// Messages that one act looks at.
const LOOKS: usize = 256;
/// Bytes that it writes, or a little more: it is one commit, and whatever else is to be done waits for it.
const WRITTEN_MAX: usize = 128 << 10;

/// Which messages are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Queued ones, or dead ones; none: both.
    pub state: Option<Part>,
    /// Those of conversations with this label.
    pub conversation: Option<Box<str>>,
    /// Those that died of this.
    pub reason: Option<Reason>,
}

/// A part of what is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What waits to be sent.
    Queued,
    /// The dead letters.
    Dead,
}

/// How far somebody has come: after this message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// In what is queued.
    Queued {
        /// The number of its pack.
        pack: u64,
        /// Its place there.
        nth: u8,
    },
    /// In the dead letters, by sequence number.
    Dead(u64),
}

/// A part of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// What was found.
    pub messages: Vec<Seen>,
    /// Where to go on; none at the end.
    pub next: Option<Cursor>,
}

/// What a bulk act has come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Messages redriven, or deleted.
    pub done: u64,
    /// Messages that were left, because an attempt is under way.
    pub in_flight: u64,
    /// For what there was no room.
    pub full: Option<Full>,
    /// Where to go on; none at the end.
    pub next: Option<Cursor>,
}

/// A message as an operator sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The relay's id of it.
    pub id: MessageId,
    /// The token that Connect knows it by.
    pub client_token: Box<str>,
    /// Its conversation's label.
    pub conversation: Box<str>,
    /// Its ContentType; none for a disconnect.
    pub content_type: Option<Box<str>>,
    /// The trace it belongs to.
    pub trace_id: Option<Box<str>>,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// When its lifetime ends, or ended.
    pub deadline: Timestamp,
    /// Attempts that counted.
    pub attempts: u32,
    /// It may have been delivered.
    pub maybe_delivered: bool,
    /// Where it is.
    pub place: SeenPlace,
    /// What it says, where that was asked for and can be read.
    pub body: Option<Body>,
}

/// Where a message is, as an operator sees it.
#[derive(Clone, Debug, PartialEq)]
pub enum SeenPlace {
    /// It waits to be sent.
    Queued {
        /// An attempt is under way.
        in_flight: bool,
        /// Before this nothing of its conversation is sent.
        next_attempt: Option<Timestamp>,
    },
    /// It is a dead letter.
    Dead {
        /// Since then.
        died: Timestamp,
        /// Why; none where that was damaged.
        reason: Option<Reason>,
        /// What upstream, or the relay, said.
        error: ServiceError,
    },
}

/// What became of a search for a message by its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sought {
    /// It is queued or dead.
    Here(MessageId),
    /// It was accepted once; since then it was delivered, or it is kept no longer.
    Gone,
    /// There never was one.
    Never,
}

/// What a redrive changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redrive {
    /// It goes with this token, in that one's conversation.
    pub token: Option<ConnectionToken>,
    /// It says this, under a new ClientToken.
    pub body: Option<Body>,
}

/// Why an operator's act was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmoved {
    /// It is queued already.
    Queued,
    /// An attempt is under way: its answer is waited for.
    InFlight,
    /// It was delivered meanwhile, or is kept no longer.
    Gone,
    /// That token's conversation has a message of this ClientToken.
    Taken,
    /// There is no room.
    Full(Full),
}

/// An operator's act, on its way to the writer.
pub enum Operation {
    List { of: Selection, after: Cursor, most: usize, reply: oneshot::Sender<Page> },
    Seek { store: u32, sequence: u64, after: u64, reply: oneshot::Sender<Result<Sought, u64>> },
    Show { id: MessageId, contents: bool, reply: oneshot::Sender<Option<Seen>> },
    Redrive { id: MessageId, with: Redrive, reply: oneshot::Sender<Result<Seen, Unmoved>> },
    RedriveAll { of: Selection, after: Cursor, most: usize, reply: oneshot::Sender<Sweep> },
    Delete { id: MessageId, reply: oneshot::Sender<Result<Seen, Unmoved>> },
    DeleteAll { of: Selection, after: Cursor, most: usize, reply: oneshot::Sender<Sweep> },
}

/// What a dead letter died of.
struct Death {
    reason: Reason,
    maybe_delivered: bool,
    error: ErrorRow,
    outcome: Outcome,
}

/// A message that is met on the way.
enum Met {
    Queued(Queued),
    Dead(Dead),
}

impl Selection {
    /// Where to begin.
    #[must_use]
    pub fn start(&self) -> Cursor {
        match (self.state, self.reason) {
            (Some(Part::Dead), _) | (None, Some(_)) => Cursor::Dead(0),
            _ => Cursor::Queued { pack: 0, nth: u8::MAX },
        }
    }

    /// Whether somebody who goes through these can have come so far.
    #[must_use]
    pub fn leads_to(&self, cursor: Cursor) -> bool {
        match cursor {
            Cursor::Queued { .. } => matches!(self.start(), Cursor::Queued { .. }),
            Cursor::Dead(_) => self.state != Some(Part::Queued),
        }
    }

    /// Whether a queued message is meant.
    fn means_queued(&self, record: &Record) -> bool {
        self.reason.is_none() && self.means(record)
    }

    fn means(&self, record: &Record) -> bool {
        self.conversation.as_ref().is_none_or(|label| **label == *record.label)
    }
}

/// `q12.3`, `d42`: what [`Cursor::parse`] reads.
impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Cursor::Queued { pack, nth } => write!(f, "q{pack}.{nth}"),
            Cursor::Dead(sequence) => write!(f, "d{sequence}"),
        }
    }
}

impl Cursor {
    /// A cursor as it is shown.
    #[must_use]
    pub fn parse(text: &str) -> Option<Cursor> {
        if let Some(sequence) = text.strip_prefix('d') {
            return sequence.parse().ok().map(Cursor::Dead);
        }
        let (pack, nth) = text.strip_prefix('q')?.split_once('.')?;
        Some(Cursor::Queued { pack: pack.parse().ok()?, nth: nth.parse().ok()? })
    }
}

impl Queue {
    /// The next of what is meant, at most so many.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn list(&self, of: Selection, after: Cursor, most: usize) -> Result<Page, StoreFailed> {
        self.ask(|reply| Act::Operate(Operation::List { of, after, most, reply })).await
    }

    /// Finds a message by its id as it is shown.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn seek(&self, name: &str) -> Result<Sought, StoreFailed> {
        let Some((store, sequence)) = MessageId::parts(name) else { return Ok(Sought::Never) };
        let mut after = 0;
        loop {
            let sought = self.ask(|reply| Act::Operate(Operation::Seek { store, sequence, after, reply })).await?;
            match sought {
                Ok(sought) => return Ok(sought),
                Err(further) => after = further,
            }
        }
    }

    /// What is known of a message that is queued or dead; its contents where they are asked for.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn show(&self, id: MessageId, contents: bool) -> Result<Option<Seen>, StoreFailed> {
        self.ask(|reply| Act::Operate(Operation::Show { id, contents, reply })).await
    }

    /// Queues a dead letter again, with a fresh lifetime, and forgets that its token was refused.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn redrive(&self, id: MessageId, with: Redrive) -> Result<Result<Seen, Unmoved>, StoreFailed> {
        self.ask(|reply| Act::Operate(Operation::Redrive { id, with, reply })).await
    }

    /// Redrives the next of the dead letters that are meant, at most so many; those that were deleted only where that
    /// reason is named. Ends at the first for which there is no room.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn redrive_all(&self, of: Selection, after: Cursor, most: usize) -> Result<Sweep, StoreFailed> {
        let of = Selection { state: Some(Part::Dead), ..of };
        self.ask(|reply| Act::Operate(Operation::RedriveAll { of, after, most, reply })).await
    }

    /// Makes a message a dead letter that was deleted.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn delete(&self, id: MessageId) -> Result<Result<Seen, Unmoved>, StoreFailed> {
        self.ask(|reply| Act::Operate(Operation::Delete { id, reply })).await
    }

    /// Deletes the next of what is queued and meant, at most so many.
    ///
    /// # Errors
    /// If the store has failed.
    pub async fn delete_all(&self, of: Selection, after: Cursor, most: usize) -> Result<Sweep, StoreFailed> {
        let of = Selection { state: Some(Part::Queued), ..of };
        self.ask(|reply| Act::Operate(Operation::DeleteAll { of, after, most, reply })).await
    }
}

impl MessageId {
    /// The store's nonce and the sequence number in an id as it is shown.
    fn parts(name: &str) -> Option<(u32, u64)> {
        let (store, sequence) = name.split_once('-')?;
        let parts = (u32::from_str_radix(store, 16).ok()?, sequence.parse().ok()?);
        // As it is shown, and in no other way.
        (format!("{:08x}-{}", parts.0, parts.1) == name).then_some(parts)
    }
}

impl Writer {
    pub(super) fn operate(&mut self, operation: Operation, now: Timestamp) -> Result<(), StoreFailed> {
        match operation {
            Operation::List { of, after, most, reply } => {
                let mut messages = Vec::new();
                let next = self.go_through(&of, after, most, |writer, met| {
                    messages.push(writer.seen(met, false)?);
                    Ok(true)
                })?;
                self.answer(reply, Page { messages, next });
            }
            Operation::Seek { store, sequence, after, reply } => {
                let sought = self.seek(store, sequence, after)?;
                self.answer(reply, sought);
            }
            Operation::Show { id, contents, reply } => {
                let seen = match self.find_met(id)? {
                    Some(met) => Some(self.seen(met, contents)?),
                    None => None,
                };
                self.answer(reply, seen);
            }
            Operation::Redrive { id, with, reply } => {
                let done = match self.find_met(id)? {
                    Some(Met::Dead(dead)) => match self.redrive(dead, with, now)? {
                        Ok(queued) => Ok(self.seen(Met::Queued(queued), false)?),
                        Err(unmoved) => Err(unmoved),
                    },
                    Some(Met::Queued(_)) => Err(Unmoved::Queued),
                    None => Err(Unmoved::Gone),
                };
                self.answer(reply, done);
            }
            Operation::RedriveAll { of, after, most, reply } => {
                let mut sweep = Sweep::default();
                sweep.next = self.go_through(&of, after, most, |writer, met| {
                    let Met::Dead(dead) = met else { return Ok(true) };
                    // What an operator has deleted comes back only where they say so.
                    let death = writer.death(&dead.record)?;
                    if of.reason.is_none() && death.is_some_and(|death| death.reason == Reason::Deleted) {
                        return Ok(true);
                    }
                    match writer.redrive(dead, Redrive::default(), now)? {
                        Err(Unmoved::Full(full)) => sweep.full = Some(full),
                        Err(_) => {}
                        Ok(_) => sweep.done += 1,
                    }
                    Ok(sweep.full.is_none())
                })?;
                self.answer(reply, sweep);
            }
            Operation::Delete { id, reply } => {
                let deleted = match self.find_met(id)? {
                    Some(met) => self.delete(met, now)?,
                    None => Err(Unmoved::Gone),
                };
                let seen = match (deleted, self.find_met(id)?) {
                    (Ok(()), Some(met)) => Ok(self.seen(met, false)?),
                    (Ok(()), None) => Err(Unmoved::Gone),
                    (Err(unmoved), _) => Err(unmoved),
                };
                self.answer(reply, seen);
            }
            Operation::DeleteAll { of, after, most, reply } => {
                let mut sweep = Sweep::default();
                sweep.next = self.go_through(&of, after, most, |writer, met| {
                    match writer.delete(met, now)? {
                        Ok(()) => sweep.done += 1,
                        Err(_) => sweep.in_flight += 1,
                    }
                    Ok(true)
                })?;
                self.answer(reply, sweep);
            }
        }
        Ok(())
    }
}

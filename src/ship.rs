//! Shipping a store: the copy of its commits that goes to a stream of another machine, as a pure state machine.
//!
//! ```text
//! queue's thread ──Ticket──▶ Ship ──Step: publish, read, look, purge──▶ the stream, by `fleet`
//!       ▲                     │ ▲                                            │
//!       └───────Report────────┘ └──────stored, refused, lost, found──────────┘
//! ```
//!
//! One record is in flight. It names the sequence that must be the stream's last one (the *expected* sequence), so the
//! stream stores it directly behind this relay's previous record or not at all. A relay takes a stream over by a *claim*,
//! a record like any other. From its storage on every record of the previous owner has an expectation that is too low:
//! **records of two owners never alternate**, however late a copy arrives.
//!
//! | the stream says | it means | next |
//! | --- | --- | --- |
//! | stored behind the expected sequence | stored | the next record |
//! | stored elsewhere | the stream cannot be trusted with sequences | look |
//! | nothing, or no leader | doubt | the same bytes with the same expectation again |
//! | wrong sequence, the last is lower | the stream lost records, or the leader is behind | look |
//! | wrong sequence, the last is not lower | doubt: it may be the own first copy | read behind the expected sequence, from the leader |
//! | … that record is this one | stored | the next record |
//! | … it is another one | look | |
//! | … there is none | the first copy is under way, or it failed | the same bytes again |
//! | … it was removed | a successor's snapshot is behind it | look |
//!
//! *Look*: read the last record and the claim that it belongs to. If the claim is another relay's, this one is
//! **fenced**. Otherwise the relay claims the stream anew and ships a snapshot, because what was in flight is unknown. A
//! refusal alone is never a fence. A record that was published is never changed, and a late copy of one from before the
//! last claim does not count (`replay`).
//!
//! After a gap, which every start is, a claim and its records count only when its snapshot is complete. Until then they are
//! *provisional*, and if a later claim is stored before that, no restore can need them. So that the stream does not fill
//! with the beginnings of snapshots of a relay that crashes again and again, they are under a subject of their claim, and
//! the relay removes them as soon as the later claim is stored. That claim names the first provisional one, which stays: so
//! a restore knows that what is missing between the two never counted (`replay`). Everything that counts is under the
//! common subject: the ends of snapshots and what comes after them.
//!
//! If records cannot be stored, tickets wait. A ticket that finds more than [`BACKLOG_MAX`] bytes waiting is dropped with
//! all of them, and a snapshot replaces them once the stream takes records again.
//!
//! Each record names the position of the last commit, and each claim the runs that made the store (`history`): so a start
//! finds out whether its volume has what the stream has. A relay that did not find that out owns no stream.
//!
//! This module knows neither messages nor NATS.

#[cfg(test)]
mod crashes;
pub mod history;
pub mod link;
pub mod ownership;
pub mod record;
pub mod replay;
pub mod standing;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use bytes::Bytes;

use self::history::{Copy, Relation};
use self::record::{Codec, Head, Kind, OVERHEAD, Owner};
use self::standing::Standing;
use crate::storage::{CommitPos, Run};

/// The bytes of waiting tickets that the next ticket may join. A commit alone may be longer.
pub const BACKLOG_MAX: usize = 1 << 20;

/// The most predecessors in a claim.
const PREDECESSORS_MAX: usize = 256;

/// A piece of work from the thread that commits.
#[derive(Clone, PartialEq, Eq)]
pub enum Item {
    /// A snapshot begins here.
    Begin {
        /// The format stamp of the store.
        stamp: String,
        /// True if every commit before it was shipped.
        continues: bool,
    },
    /// The rows of a commit, or of a part of the snapshot.
    Rows(Vec<u8>),
    /// The snapshot ends here.
    End,
    /// The relay stops, and everything is shipped.
    Released,
}

/// Leaves out the rows, which contain secrets.
impl std::fmt::Debug for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Item::Begin { continues, .. } => write!(f, "Begin({continues})"),
            Item::Rows(rows) => write!(f, "Rows({} bytes)", rows.len()),
            Item::End => f.write_str("End"),
            Item::Released => f.write_str("Released"),
        }
    }
}

/// An item with its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ticket {
    /// The number; each ticket has one more than the ticket before it.
    pub number: u64,
    /// The queued messages after it.
    pub queued: u64,
    /// The last commit that the stream has with it.
    pub at: CommitPos,
    /// The item.
    pub item: Item,
}

/// A message to the thread that commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// The relay is connected with the stream's servers, or not.
    Connected(bool),
    /// This ticket and all before it are stored.
    Stored(u64),
    /// The tickets that are not stored were dropped; no more are wanted for now.
    Dropped,
    /// The stream takes records; the next ticket must begin a snapshot.
    Ready,
    /// Another relay, on this machine, has the stream.
    Fenced(String),
}

/// The relay as an owner of streams.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The copy of the store on its volume.
    pub volume: u64,
    /// The process.
    pub instance: u64,
    /// The name of the machine.
    pub node: String,
}

/// The next step for the stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Publish the record with this expected last sequence.
    Publish {
        /// The expected sequence.
        expected: u64,
        /// The record.
        record: &'a Bytes,
        /// The claim under whose subject it goes, if it is provisional.
        provisional: Option<u64>,
    },
    /// Read the record at this sequence, from the leader.
    Read(u64),
    /// Find the state of the stream, from the leader.
    Look,
    /// Remove all records before this sequence.
    Purge(u64),
    /// Remove the provisional records of a claim.
    Remove {
        /// The claim.
        provisional: u64,
        /// The sequence of a later claim.
        before: u64,
    },
    /// Wait for a ticket.
    Wait,
    /// Stop: another relay has the stream.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The state of the stream is unknown.
    Looking,
    /// Tickets before the next `Begin` do not count.
    Ready,
    /// Tickets are shipped.
    Shipping,
    /// Tickets are dropped, and the record in flight is to be resolved.
    Dropping,
    Fenced,
}

/// A record that was published, perhaps several times.
#[derive(Debug)]
struct Flight {
    record: Bytes,
    head: Head,
    /// The ticket that is stored with it.
    ticket: Option<u64>,
    /// The claim under whose subject it goes.
    provisional: Option<u64>,
    /// True if it is a claim that continues the records before it.
    continues: bool,
    /// True if the stream refused it: the record may be stored.
    doubt: bool,
}

/// The state of shipping.
#[derive(Debug)]
pub struct Ship {
    codec: Codec,
    identity: Identity,
    random: fastrand::Rng,
    /// The most bytes of a body.
    body_max: usize,
    phase: Phase,
    /// The sequence of the last record.
    expected: u64,
    /// The number and the sequence of the own last claim.
    claim: Option<(u64, u64)>,
    flight: Option<Flight>,
    /// The claims whose records do not count, the newest last; the own one is among them until its snapshot is complete.
    provisional: Vec<u64>,
    /// The sequence of the first one.
    since: Option<u64>,
    /// Those of them whose records are to be removed.
    remove: VecDeque<u64>,
    /// True if the claim that is made from the first ticket continues the records before it.
    continues: bool,
    /// Records of the first ticket that follow the one in flight.
    rest: VecDeque<(Kind, Vec<u8>)>,
    tickets: VecDeque<Ticket>,
    bytes: usize,
    purge: Option<u64>,
    /// The runs whose commits the store has, this one's last.
    runs: Vec<Run>,
    /// The processes that owned the stream before, as the claims say.
    predecessors: Vec<u64>,
    /// The last commit of the ticket before the first one.
    at: CommitPos,
    reports: Vec<Report>,
    /// The number of answers that showed that no other relay had claimed the stream when it answered. That a record of
    /// this relay is found shows nothing: it may have been stored long ago.
    pub confirmations: u64,
}

impl Ship {
    /// The state at a start. If `standing` is known, the relay has looked, and its store has everything: it claims the
    /// stream behind that sequence, as the successor of its owner. Otherwise it looks first.
    #[must_use]
    pub fn new(codec: Codec, identity: Identity, standing: Option<Standing>, seed: u64) -> Ship {
        let mut ship = Ship {
            codec,
            identity,
            random: fastrand::Rng::with_seed(seed),
            body_max: 512 << 10,
            phase: Phase::Looking,
            expected: 0,
            claim: None,
            flight: None,
            provisional: Vec::new(),
            since: None,
            remove: VecDeque::new(),
            continues: false,
            rest: VecDeque::new(),
            tickets: VecDeque::new(),
            bytes: 0,
            purge: None,
            runs: Vec::new(),
            predecessors: Vec::new(),
            at: CommitPos::default(),
            reports: Vec::new(),
            confirmations: 0,
        };
        if let Some(standing) = standing {
            ship.begin_behind(standing);
        }
        ship
    }

    /// Limits the length of records. Rows in flight that are longer could never be published again, and a record never
    /// changes: the relay claims the stream anew.
    pub fn limit_records(&mut self, bytes: usize) {
        self.body_max = bytes.saturating_sub(OVERHEAD).clamp(1 << 10, 512 << 10);
        let most = self.body_max + OVERHEAD;
        let rows = |kind: Kind| matches!(kind, Kind::Rows | Kind::Part);
        let is_long = self.flight.as_ref().is_some_and(|flight| rows(flight.head.kind) && flight.record.len() > most);
        if is_long || self.rest.iter().any(|(kind, body)| rows(*kind) && body.len() > self.body_max) {
            self.look();
        }
    }

    /// Sets the volume, and the runs whose commits its store has, this one's last.
    pub fn set_volume(&mut self, volume: u64, runs: Vec<Run>) {
        (self.identity.volume, self.runs) = (volume, runs);
    }

    /// The reports since this was last called.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// Takes a ticket.
    pub fn push(&mut self, ticket: Ticket) {
        match (self.phase, &ticket.item) {
            (Phase::Ready, Item::Begin { .. }) => self.phase = Phase::Shipping,
            (Phase::Shipping, _) => {}
            _ => return,
        }
        // The length of the ticket itself does not count: commits wait for the stream's answers, so while it answers, a
        // commit of any length finds no more than a part of a snapshot.
        if self.bytes > BACKLOG_MAX {
            self.drop_tickets();
            self.phase = Phase::Dropping;
        } else {
            if let Item::Rows(rows) = &ticket.item {
                self.bytes += rows.len();
            }
            self.tickets.push_back(ticket);
        }
        self.go_on();
    }

    /// The next step.
    #[must_use]
    pub fn next(&self) -> Step<'_> {
        match (self.phase, &self.flight) {
            (Phase::Fenced, _) => Step::Stop,
            (Phase::Looking, _) => Step::Look,
            (_, Some(Flight { doubt: true, .. })) => Step::Read(self.expected + 1),
            (_, flight) => match (self.remove.front(), self.claim, flight) {
                // Before more records: the stream may be almost full.
                (Some(claim), Some((_, before)), _) => Step::Remove { provisional: *claim, before },
                (_, _, Some(Flight { record, provisional, .. })) => {
                    Step::Publish { expected: self.expected, record, provisional: *provisional }
                }
                (_, _, None) => self.purge.map_or(Step::Wait, Step::Purge),
            },
        }
    }

    /// The published record is stored at this sequence.
    pub fn stored(&mut self, sequence: u64) {
        if sequence == self.expected + 1 {
            self.confirmations += 1;
            self.advance();
        } else {
            self.look();
        }
    }

    /// The published record was refused, because this is the last sequence.
    pub fn refused(&mut self, last: u64) {
        if last < self.expected {
            self.look();
        } else if let Some(flight) = &mut self.flight {
            flight.doubt = true;
        }
    }

    /// The place of the record in flight is gone: there is no stream any more, or it begins behind that place, because
    /// another relay has removed what comes before its snapshot.
    pub fn gone(&mut self) {
        self.look();
    }

    /// The last sequence of the stream while nothing is in flight, by its leader: another one than this relay's shows
    /// that records were lost, or that another relay writes.
    pub fn measured(&mut self, last: u64) {
        if self.claim.is_none() || self.flight.is_some() || matches!(self.phase, Phase::Looking | Phase::Fenced) {
            return;
        }
        if last == self.expected { self.confirmations += 1 } else { self.look() }
    }

    /// Returns true if this relay has claimed the stream, as far as it knows.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        self.claim.is_some() && self.phase != Phase::Fenced
    }

    /// The record behind the expected sequence, by the leader; `None` if there is none, or no leader.
    pub fn read(&mut self, found: Option<&[u8]>) {
        let Some(flight) = &mut self.flight else { return };
        match found {
            None => flight.doubt = false,
            Some(found) if found == flight.record => self.advance(),
            Some(_) => self.look(),
        }
    }

    /// The state of the stream, by its leader.
    pub fn found(&mut self, standing: Standing) {
        if self.phase != Phase::Looking {
            return;
        }
        if standing.owner.as_ref().is_none_or(|owner| self.is_own(owner, &standing)) {
            self.begin_behind(standing);
        } else {
            self.phase = Phase::Fenced;
            self.reports.push(Report::Fenced(standing.owner.map(|owner| owner.node).unwrap_or_default()));
        }
    }

    /// Returns true if no successor made this claim: this process did, or an earlier one of its volume whose commits the
    /// store has, or, in a stream that was put back from a backup, a process that this one succeeds.
    fn is_own(&self, owner: &Owner, standing: &Standing) -> bool {
        let store = Copy { runs: &self.runs, at: CommitPos::MAX };
        let complete = || standing.copy().is_some_and(|stream| store.relation(stream) == Relation::Complete);
        let went_back = standing.last < self.expected;
        owner.instance == self.identity.instance
            || (self.claim.is_none() && owner.volume == self.identity.volume && complete())
            || (went_back && (self.has_run(owner.instance) || self.predecessors.contains(&owner.instance)))
    }

    fn has_run(&self, instance: u64) -> bool {
        self.runs.iter().any(|run| run.instance == instance)
    }

    /// The records before the sequence were removed, or could not be.
    pub fn purged(&mut self) {
        self.purge = None;
    }

    /// The records that were to be removed are, or could not be: then a later claim removes them.
    pub fn removed(&mut self) {
        self.remove.pop_front();
    }

    fn begin_behind(&mut self, Standing { last, owner, provisional, since, .. }: Standing) {
        // An owner knows its predecessors, whatever the stream has lost.
        if let Some(owner) = owner.filter(|_| self.claim.is_none()) {
            let found = owner.predecessors.into_iter().chain(owner.runs.iter().map(|run| run.instance));
            let new: Vec<u64> = found.filter(|instance| !self.predecessors.contains(instance)).collect();
            self.predecessors.extend(new);
        }
        (self.provisional, self.since) = (provisional, since);
        self.expected = last;
        self.phase = Phase::Ready;
        self.reports.push(Report::Ready);
    }

    /// The record in flight is stored.
    fn advance(&mut self) {
        let Some(Flight { head, ticket, continues, .. }) = self.flight.take() else { return };
        self.expected += 1;
        match head.kind {
            Kind::Claim => {
                self.claim = Some((head.claim, self.expected));
                self.purge = None;
                if !continues {
                    self.remove = self.provisional.iter().copied().collect();
                    self.provisional.push(head.claim);
                    self.since = self.since.or(Some(self.expected));
                }
            }
            Kind::End => {
                self.purge = self.claim.map(|(_, at)| at);
                self.provisional.clear();
                self.since = None;
                self.remove.clear();
            }
            Kind::Rows | Kind::Part | Kind::Released => {}
        }
        self.reports.extend(ticket.map(Report::Stored));
        self.go_on();
    }

    /// Puts the next record in flight.
    fn go_on(&mut self) {
        if self.flight.is_some() {
            return;
        }
        if self.phase == Phase::Dropping {
            self.phase = Phase::Ready;
            self.reports.push(Report::Ready);
        }
        if self.phase != Phase::Shipping {
            return;
        }
        let Some(Ticket { number, queued, at: commit, .. }) = self.tickets.front() else { return };
        let (number, queued, commit) = (*number, *queued, *commit);
        if self.rest.is_empty() {
            self.split();
        }
        let Some((kind, body)) = self.rest.pop_front() else { return };
        let (claim, at) = match (kind, self.claim) {
            (Kind::Claim, _) | (_, None) => (self.random.u64(..), self.expected + 1),
            (_, Some(claim)) => claim,
        };
        if kind != Kind::Part {
            self.at = commit;
        }
        let head = Head { kind, claim, number: self.expected + 1 - at, queued, at: self.at };
        let record = self.codec.encode(head, &body).into();
        let ticket = self.rest.is_empty().then(|| {
            self.tickets.pop_front();
            number
        });
        let is_provisional = match kind {
            Kind::Claim => !self.continues && self.since.is_some(),
            Kind::Rows | Kind::Part => self.provisional.contains(&claim),
            Kind::End | Kind::Released => false,
        };
        let (provisional, continues) = (is_provisional.then_some(claim), kind == Kind::Claim && self.continues);
        self.flight = Some(Flight { record, head, ticket, provisional, continues, doubt: false });
    }

    /// The newest predecessors whose runs the store does not have.
    fn other_predecessors(&self) -> Vec<u64> {
        let others = self.predecessors.iter().copied().filter(|instance| !self.has_run(*instance));
        let others: Vec<u64> = others.collect();
        others[others.len().saturating_sub(PREDECESSORS_MAX)..].to_vec()
    }

    /// Splits the first ticket into records.
    fn split(&mut self) {
        let Some(ticket) = self.tickets.front_mut() else { return };
        match &mut ticket.item {
            Item::Begin { stamp, continues } => {
                let Identity { volume, instance, node } = self.identity.clone();
                let (stamp, continues) = (stamp.clone(), *continues && self.claim.is_some());
                self.continues = continues;
                let (predecessors, runs) = (self.other_predecessors(), self.runs.clone());
                let since = self.since.filter(|_| !continues);
                let owner = Owner { volume, instance, node, stamp, continues, runs, predecessors, since };
                self.rest.push_back((Kind::Claim, owner.encode()));
            }
            Item::Rows(rows) => {
                let rows = std::mem::take(rows);
                self.bytes -= rows.len();
                if rows.len() <= self.body_max {
                    self.rest.push_back((Kind::Rows, rows));
                    return;
                }
                let mut parts = rows.chunks(self.body_max).peekable();
                while let Some(part) = parts.next() {
                    let kind = if parts.peek().is_some() { Kind::Part } else { Kind::Rows };
                    self.rest.push_back((kind, part.to_vec()));
                }
            }
            Item::End => self.rest.push_back((Kind::End, Vec::new())),
            Item::Released => self.rest.push_back((Kind::Released, Vec::new())),
        }
    }

    fn look(&mut self) {
        if self.phase == Phase::Fenced {
            return;
        }
        self.flight = None;
        self.remove.clear();
        if matches!(self.phase, Phase::Shipping) {
            self.drop_tickets();
        }
        self.phase = Phase::Looking;
    }

    fn drop_tickets(&mut self) {
        self.tickets.clear();
        self.rest.clear();
        self.bytes = 0;
        self.purge = None;
        self.reports.push(Report::Dropped);
    }
}

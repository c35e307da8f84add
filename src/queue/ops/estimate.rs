//! The estimated loss: the number of queued messages that will expire before they can be sent.
//!
//! Nothing is scanned. If there are at most [`PACKS`] packs, each is read, else [`SAMPLED`] of them, evenly spaced, and a few
//! records of each; a record represents the records around it. A message counts as lost in two cases:
//!
//! | case | reason |
//! | --- | --- |
//! | at the learned rate, its conversation alone has more messages before it than go out within its lifetime | order within a conversation is fixed |
//! | all other messages whose lifetimes end no later use up what goes out until then | the rate is shared, whatever the order |
//!
//! A lost message uses no quota: it is expired, and not sent. While sending is paused or the destination is down, the estimate
//! assumes that sending resumes now, and adds all whose lifetime ends within [`SOON`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Bound;
use std::time::Duration;

use crate::queue::api::{Expiring, Result};
use crate::queue::rows::{Hash, QueuedRef, Record, Table, keys};
use crate::queue::state::State;
use crate::time::Timestamp;

/// The most packs of which each is read.
const PACKS: u64 = 128;
/// The packs that are read of more than [`PACKS`]. They and the rows of their conversations stay in sled's cache: with 128
/// packs, a relay with 10,000 queued messages took 6 MiB for them.
const SAMPLED: u64 = 32;
/// The most records of a pack that are looked at.
const RECORDS: usize = 4;
/// The time after which an estimate from samples is made again; one of all messages is made at each tick.
const SAMPLED_EVERY: Duration = Duration::from_secs(5);
/// While nothing is sent, messages that expire within this time count as lost.
const SOON: Duration = Duration::from_secs(300);

/// A message that represents some.
#[derive(Clone, Copy, Debug)]
struct Sample {
    deadline: Timestamp,
    /// The number of messages that it represents.
    weight: f64,
    /// The number of messages of its conversation before it.
    ahead: f64,
}

/// The pace at which messages are sent.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Messages a second while sending.
    pub rate: f64,
    /// True if nothing is sent now.
    pub stopped: bool,
}

/// The known sequence numbers of one conversation's messages.
struct Positions {
    first: Vec<u64>,
    count: u64,
    /// The last sequence number of all.
    last: u64,
}

impl Positions {
    /// The approximate number of messages of the conversation before this one.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn ahead(&self, sequence: u64) -> f64 {
        if let Some(at) = self.first.iter().position(|own| *own == sequence) {
            return at as f64;
        }
        let (shown, newest) = (self.first.len() as f64, self.first.last().copied().unwrap_or(0));
        let span = self.last.saturating_sub(newest).max(1) as f64;
        let part = sequence.saturating_sub(newest).saturating_sub(1) as f64 / span;
        shown + part.min(1.0) * (self.count as f64 - shown).max(0.0)
    }
}

/// Makes the estimate again, if it is time to.
pub fn estimate_loss(state: &mut State, pace: Pace, now: Timestamp) -> Result<()> {
    let exact = state.meta.next_pack.saturating_sub(first_pack(state)?) <= PACKS;
    if state.meta.queued > 0 && !exact && now.since(state.estimated_at) < SAMPLED_EVERY {
        return Ok(());
    }
    state.estimated_at = now;
    let samples = if state.meta.queued == 0 { Vec::new() } else { samples(state, now)? };
    let stopped = pace.stopped || state.sending.paused.is_some();
    state.expiring = estimate(samples, state.meta.queued, Pace { stopped, ..pace }, now);
    Ok(())
}

fn first_pack(state: &State) -> Result<u64> {
    let first = state.store.first_key(Table::Pack.key())?;
    Ok(first.map_or(state.meta.next_pack, |key| keys::number_in(&key)))
}

/// Queued messages, evenly spaced.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn samples(state: &mut State, now: Timestamp) -> Result<Vec<Sample>> {
    let first = first_pack(state)?;
    let packs = state.meta.next_pack.saturating_sub(first);
    let points = if packs <= PACKS { packs } else { SAMPLED };
    let point = |number: u64| first + number * packs / points.max(1);
    let (mut samples, mut known) = (Vec::new(), HashMap::new());
    for number in 0..points {
        let Some(live) = state.next_pack(point(number).saturating_sub(1))? else { break };
        let next = point(number + 1);
        if live.pack >= next {
            continue; // the next point meets it
        }
        let step = live.records.len().div_ceil(RECORDS).max(1);
        let met = live.records.len().div_ceil(step) as f64;
        let weight = (next - live.pack) as f64 * live.records.len() as f64 / met.max(1.0);
        for (_, record) in live.records.into_iter().step_by(step) {
            let ahead = positions(state, &record, &mut known, now)?.ahead(record.sequence);
            samples.push(Sample { deadline: record.deadline, weight, ahead });
        }
    }
    Ok(samples)
}

fn positions<'a>(
    state: &mut State,
    record: &Record,
    known: &'a mut HashMap<Hash, Positions>,
    now: Timestamp,
) -> Result<&'a Positions> {
    let conversation = record.conversation;
    let unknown = match known.entry(conversation) {
        Entry::Occupied(known) => return Ok(known.into_mut()),
        Entry::Vacant(unknown) => unknown,
    };
    let row = state.conversation(&conversation, now)?;
    let chunks = keys::chunks(&conversation);
    let behind = chunks.end().map_or(Bound::Unbounded, Bound::Excluded);
    let chunk = if row.in_chunks() > 0 { state.store.last_key(chunks, behind)? } else { None };
    let chunk = chunk.map(|key| state.store.get::<Vec<QueuedRef>>(&key)).transpose()?.flatten();
    let last = chunk.and_then(|chunk| chunk.last().map(|last| last.sequence));
    let first: Vec<u64> = row.first.iter().map(|reference| reference.sequence).collect();
    let last = last.or(first.last().copied()).unwrap_or(0);
    Ok(unknown.insert(Positions { first, count: row.count, last }))
}

/// The loss among `queued` messages, which the samples represent.
#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn estimate(mut samples: Vec<Sample>, queued: u64, pace: Pace, now: Timestamp) -> Expiring {
    let all: f64 = samples.iter().map(|sample| sample.weight).sum();
    let scale = if all > 0.0 { queued as f64 / all } else { 0.0 };
    samples.sort_by_key(|sample| sample.deadline);
    let (mut sent, mut lost, mut first) = (0.0, 0.0, None);
    for Sample { deadline, weight, ahead } in samples {
        let weight = weight * scale;
        let left = deadline.since(now);
        // The first goes out at once.
        let room = pace.rate * left.as_secs_f64() + 1.0;
        let soon = pace.stopped && left <= SOON;
        let late = if soon || ahead >= room { weight } else { (sent + weight - room).clamp(0.0, weight) };
        sent += weight - late;
        lost += late;
        if late > 0.0 {
            first = first.or(Some(deadline));
        }
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "no more than are queued, and not negative"
    )]
    let messages = (lost.round() as u64).min(queued);
    Expiring { messages, first: first.filter(|_| messages > 0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000);

    fn samples(count: usize, seconds: u64, ahead: impl Fn(usize) -> f64) -> Vec<Sample> {
        let sample = |at| Sample { deadline: NOW + Duration::from_secs(seconds), weight: 1.0, ahead: ahead(at) };
        (0..count).map(sample).collect()
    }

    fn lost(samples: Vec<Sample>, rate: f64, stopped: bool) -> u64 {
        let queued = samples.len() as u64;
        estimate(samples, queued, Pace { rate, stopped }, NOW).messages
    }

    #[test]
    fn messages_that_cannot_be_sent_in_time_are_lost_in_one_conversation_and_in_many() {
        assert_eq!(lost(samples(3000, 900, |_| 0.0), 1.0, false), 2099);
        assert_eq!(lost(samples(3000, 900, |at| at as f64), 1.0, false), 2099);
        assert_eq!(lost(samples(3000, 900, |at| at as f64), 10.0, false), 0);
        assert_eq!(lost(Vec::new(), 1.0, false), 0);
    }

    #[test]
    fn short_lifetimes_after_many_messages_are_lost_and_in_another_conversation_are_not() {
        let long = || samples(1000, 7 * 86_400, |at| at as f64);
        let behind = samples(100, 60, |at| (1000 + at) as f64);
        assert_eq!(lost([long(), behind].concat(), 1.0, false), 100);
        let beside = samples(50, 60, |_| 0.0);
        assert_eq!(lost([long(), beside].concat(), 1.0, false), 0);
        let many = samples(100, 60, |_| 0.0);
        assert_eq!(lost([long(), many].concat(), 1.0, false), 39);
    }

    #[test]
    fn while_sending_is_stopped_messages_that_expire_within_five_minutes_are_lost_too() {
        let some = || [samples(20, 240, |_| 0.0), samples(20, 400, |_| 0.0)].concat();
        assert_eq!(lost(some(), 10.0, false), 0);
        assert_eq!(lost(some(), 10.0, true), 20);
        let found = estimate(some(), 40, Pace { rate: 10.0, stopped: true }, NOW);
        assert_eq!(found.first, Some(NOW + Duration::from_secs(240)));
    }

    #[test]
    fn few_samples_represent_all_messages() {
        let found = estimate(samples(30, 900, |_| 0.0), 3000, Pace { rate: 1.0, stopped: false }, NOW);
        assert_eq!(found.messages, 2099);
    }
}

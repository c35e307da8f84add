//! Weighted round robin: four of five turns go to fresh conversations, the fifth to the others.
//!
//! A conversation is *fresh* while its oldest waiting message is younger than `sender.fresh`. If no conversation of one
//! kind waits, the other kind gets its turns too. Within each kind the conversations take turns. So a fresh one waits
//! for at most one round of fresh ones, however large the backlog is, and the backlog gets at least a fifth of the
//! rate.
//!
//! Pure: the queue knows the waiting conversations and their order.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// The turns of a round, and the number of them that go to fresh conversations.
const ROUND: u8 = 5;
const FRESH: u8 = 4;
/// The number of spans into which `sender.fresh` is divided.
const SPANS: u32 = 16;

/// The two kinds of conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    /// The oldest message is young: an answer is still useful to the customer.
    Fresh,
    /// The oldest message has waited for longer.
    Late,
}

impl Class {
    /// The kind of a conversation whose oldest message was accepted at `oldest`.
    #[must_use]
    pub fn of(oldest: Timestamp, now: Timestamp, fresh: Duration) -> Class {
        if now.since(oldest) < fresh { Class::Fresh } else { Class::Late }
    }
}

/// The other conversations that wait for a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Fresh conversations.
    pub fresh: u64,
    /// Late conversations.
    pub late: u64,
}

/// Estimates the number of messages that are sent before one that has `ahead` messages of its own conversation before
/// it. Its conversation gets a turn for each of them and one more; between two of its turns the others get theirs.
#[must_use]
pub fn before(kind: Class, ahead: u64, others: Others) -> u64 {
    let Others { fresh, late } = others;
    let round = match kind {
        Class::Fresh if late > 0 => fresh + fresh / u64::from(FRESH),
        Class::Fresh => fresh,
        // Four fresh turns for each late one, as long as there are fresh conversations.
        Class::Late => late + fresh.min(u64::from(FRESH) * (late + 1)),
    };
    ahead.saturating_mul(round + 1).saturating_add(round)
}

/// Counts the conversations that wait among the fresh. It is for estimates: its resolution is a sixteenth of
/// `sender.fresh`, and conversations that waited before the start are not counted.
#[derive(Clone, Debug, Default)]
pub struct FreshTurns {
    spans: VecDeque<Span>,
}

/// Consecutive turns.
#[derive(Clone, Copy, Debug)]
struct Span {
    since: Timestamp,
    first: u64,
    waiting: u64,
}

impl FreshTurns {
    /// Notes that a conversation was given this turn. Turns are numbered in the order in which they are given.
    pub fn given(&mut self, turn: u64, now: Timestamp, fresh: Duration) {
        while self.spans.front().is_some_and(|span| now.since(span.since) >= fresh) {
            self.spans.pop_front();
        }
        match self.spans.back_mut().filter(|span| now.since(span.since) < fresh / SPANS) {
            Some(span) => span.waiting += 1,
            None => self.spans.push_back(Span { since: now, first: turn, waiting: 1 }),
        }
    }

    /// Notes that a conversation has left this turn.
    pub fn left(&mut self, turn: u64) {
        let after = self.spans.partition_point(|span| span.first <= turn);
        if let Some(span) = after.checked_sub(1).and_then(|at| self.spans.get_mut(at)) {
            span.waiting = span.waiting.saturating_sub(1);
        }
    }

    /// The number of conversations that wait in turns given within the last `fresh`.
    #[must_use]
    pub fn waiting(&self, now: Timestamp, fresh: Duration) -> u64 {
        self.spans.iter().filter(|span| now.since(span.since) < fresh).map(|span| span.waiting).sum()
    }
}

/// The position in the round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundRobin {
    taken: u8,
}

impl RoundRobin {
    /// Returns the kind that has the next turn; `None` if no conversation waits. `fresh` and `late` are true if one of
    /// that kind waits. Nothing changes before [`taken`](RoundRobin::taken).
    #[must_use]
    pub fn next(self, fresh: bool, late: bool) -> Option<Class> {
        match (fresh, late) {
            (false, false) => None,
            (true, false) => Some(Class::Fresh),
            (false, true) => Some(Class::Late),
            (true, true) if self.taken < FRESH => Some(Class::Fresh),
            (true, true) => Some(Class::Late),
        }
    }

    /// Notes a taken turn: a message was leased. A message that is dead by then takes no turn.
    pub fn taken(&mut self) {
        self.taken = (self.taken + 1) % ROUND;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(count: usize, fresh: bool, late: bool) -> Vec<Option<Class>> {
        let mut turns = RoundRobin::default();
        let mut next = || {
            let kind = turns.next(fresh, late);
            turns.taken();
            kind
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn four_turns_of_five_go_to_fresh_conversations() {
        let taken = turns(50, true, true);
        assert_eq!(taken.iter().filter(|kind| **kind == Some(Class::Fresh)).count(), 40);
        assert!(taken.windows(5).all(|round| round.contains(&Some(Class::Late))));
    }

    #[test]
    fn unused_turns_go_to_the_other_kind() {
        assert_eq!(turns(7, true, false), [Some(Class::Fresh); 7]);
        assert_eq!(turns(7, false, true), [Some(Class::Late); 7]);
        assert_eq!(turns(7, false, false), [None; 7]);
    }

    #[test]
    fn messages_before_one_are_counted_by_turns() {
        let of = |kind, ahead, fresh, late| before(kind, ahead, Others { fresh, late });
        for (ahead, fresh, late, expected) in [
            (0, 0, 0, 0),
            (3, 0, 0, 3),
            (0, 8, 0, 8),
            (0, 8, 10_000, 10),
            (1, 8, 10_000, 21),
            (u64::MAX, 8, 0, u64::MAX),
        ] {
            assert_eq!(of(Class::Fresh, ahead, fresh, late), expected, "{ahead} {fresh} {late}");
        }
        for (ahead, fresh, late, expected) in
            [(0, 0, 0, 0), (0, 0, 7, 7), (0, 3, 7, 10), (0, 100, 7, 39), (1, 0, 7, 15)]
        {
            assert_eq!(of(Class::Late, ahead, fresh, late), expected, "{ahead} {fresh} {late}");
        }
    }

    #[test]
    fn fresh_turns_are_counted_until_they_are_left_or_old() {
        let (fresh, mut turns) = (Duration::from_secs(30), FreshTurns::default());
        let at = |seconds: u64| Timestamp(1_000_000 + 1000 * seconds);
        turns.left(3);
        for turn in 10..70 {
            turns.given(turn, at(turn), fresh);
        }
        assert_eq!(turns.waiting(at(69), fresh), 30);
        assert!(turns.spans.len() <= 16, "{turns:?}");
        for turn in [10, 60, 61, 69] {
            turns.left(turn);
        }
        assert_eq!(turns.waiting(at(69), fresh), 27, "the old one was not counted any more");
        assert_eq!(turns.waiting(at(200), fresh), 0);
        turns.given(70, at(200), fresh);
        turns.left(70);
        assert_eq!((turns.waiting(at(200), fresh), turns.spans.len()), (0, 1));
    }

    #[test]
    fn estimate_equals_the_simulated_turns() {
        for (fresh, late) in [(0, 0), (1, 5), (7, 0), (40, 1), (40, 200)] {
            let mut turns = RoundRobin::default();
            let mut waiting = fresh;
            let mut went = 0;
            // The message in question waits behind `fresh` conversations; there is always a late one.
            while turns.next(true, late > 0) == Some(Class::Late) || waiting > 0 {
                if turns.next(true, late > 0) == Some(Class::Fresh) {
                    waiting -= 1;
                }
                turns.taken();
                went += 1;
            }
            let estimate = before(Class::Fresh, 0, Others { fresh, late });
            assert!(went >= estimate && went - estimate <= 1, "{fresh} {late}: {went}, and not {estimate}");
        }
    }

    #[test]
    fn conversation_is_fresh_until_its_oldest_message_is_not() {
        let fresh = Duration::from_secs(30);
        for (age, kind) in [(0, Class::Fresh), (29_999, Class::Fresh), (30_000, Class::Late)] {
            assert_eq!(Class::of(Timestamp(1_000_000), Timestamp(1_000_000 + age), fresh), kind);
        }
    }
}

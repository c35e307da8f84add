//! Whose turn it is: fresh conversations first, and nobody never.
//!
//! A conversation is *fresh* while its oldest waiting message is younger than `sender.fresh`. Four turns of five go to
//! fresh ones and the fifth to the others; where one kind has nobody waiting the other gets its turns too. Within each
//! kind conversations take turns, so a fresh one waits for at most one round of fresh ones, however large the backlog
//! behind them, and the backlog goes on at a fifth of the rate at least.
//!
//! Pure: what stands in line, and where, is the queue's.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// Turns of a round, and those of them that go to fresh conversations.
const ROUND: u8 = 5;
const FRESH: u8 = 4;

/// The two kinds of conversations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Its oldest message is young: an answer now still helps somebody.
    Fresh,
    /// It has waited for long already.
    Late,
}

impl Kind {
    /// The kind of a conversation whose oldest message was accepted then.
    #[must_use]
    pub fn of(oldest: Timestamp, now: Timestamp, fresh: Duration) -> Kind {
        if now.since(oldest) < fresh { Kind::Fresh } else { Kind::Late }
    }
}

/// Where the round of turns stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turns {
    taken: u8,
}

impl Turns {
    /// Which kind has the next turn, by who waits at all; none where nobody does. Nothing changes before it is
    /// [`taken`](Turns::taken).
    #[must_use]
    pub fn next(self, fresh: bool, late: bool) -> Option<Kind> {
        match (fresh, late) {
            (false, false) => None,
            (true, false) => Some(Kind::Fresh),
            (false, true) => Some(Kind::Late),
            (true, true) if self.taken < FRESH => Some(Kind::Fresh),
            (true, true) => Some(Kind::Late),
        }
    }

    /// A turn was taken: an attempt started. What turns out to be dead takes none.
    pub fn taken(&mut self) {
        self.taken = (self.taken + 1) % ROUND;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(count: usize, fresh: bool, late: bool) -> Vec<Option<Kind>> {
        let mut turns = Turns::default();
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
        assert_eq!(taken.iter().filter(|kind| **kind == Some(Kind::Fresh)).count(), 40);
        assert!(taken.windows(5).all(|round| round.contains(&Some(Kind::Late))));
    }

    #[test]
    fn nobody_waits_while_there_is_a_turn_to_be_had() {
        assert_eq!(turns(7, true, false), [Some(Kind::Fresh); 7]);
        assert_eq!(turns(7, false, true), [Some(Kind::Late); 7]);
        assert_eq!(turns(7, false, false), [None; 7]);
    }

    #[test]
    fn conversation_is_fresh_until_its_oldest_message_is_not() {
        let fresh = Duration::from_secs(30);
        for (age, kind) in [(0, Kind::Fresh), (29_999, Kind::Fresh), (30_000, Kind::Late)] {
            assert_eq!(Kind::of(Timestamp(1_000_000), Timestamp(1_000_000 + age), fresh), kind);
        }
    }
}

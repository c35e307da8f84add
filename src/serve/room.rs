//! The connection to close at the limit: pure.
//!
//! Below the limit any user gets a place, so that one busy bot can use them all. At the limit a user (Unix uid) with
//! more than a quarter of the places is *heavy*, one with less than a quarter *light*:
//!
//! | newcomer | connection to close, the first that exists |
//! | --- | --- |
//! | light | the longest idle of a heavy user; of all; the longest in its phase of a heavy user; the longest stalled of all |
//! | not light | the longest idle of its own user or of a heavy user; the longest stalled of those |
//! | by TCP | the longest idle of all; the longest stalled |
//!
//! A connection is *stalled* if its request head is incomplete (clients send heads in one piece), or if its client has
//! read nothing of the reply for a second. Cutting a request loses nothing: a disconnect withdraws no message, and the
//! client can repeat it with the same ClientToken.

use std::collections::HashMap;
use std::time::Duration;

use crate::serve::Peer;
use crate::serve::pulse::Phase;
use crate::time::Timestamp;

/// A reply of which nothing is read for this long has no reader.
const UNREAD: Duration = Duration::from_secs(1);

/// A place that is taken.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The user of the place.
    pub peer: Peer,
    /// The phase of the connection.
    pub phase: Phase,
    /// The start of the phase.
    pub since: Timestamp,
    /// True if it was asked to close.
    pub leaving: bool,
}

/// The result for a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// A place is free.
    Free,
    /// This connection is idle and is closed.
    Close(usize),
    /// This connection is not idle and is cut.
    Cut(usize),
    /// No place is available.
    None,
}

/// A user's share of the places at the limit.
pub fn quarter(most: usize) -> usize {
    (most / 4).max(1)
}

/// Finds a place for this newcomer.
pub fn find(places: &[Place], most: usize, newcomer: Peer, now: Timestamp) -> Room {
    if places.len() < most.max(1) {
        return Room::Free;
    }
    let held = Held::of(places);
    let longest = |eligible: &dyn Fn(&Place) -> bool| {
        let staying = places.iter().enumerate().filter(|(_, place)| !place.leaving && eligible(place));
        staying.min_by_key(|(_, place)| place.since).map(|(index, _)| index)
    };
    let is_heavy = |place: &Place| held.by(place.peer) > quarter(most);
    let is_idle = |place: &Place| place.phase == Phase::Idle;
    let is_stalled = |place: &Place| match place.phase {
        Phase::Head => true,
        Phase::Replying => now.since(place.since) >= UNREAD,
        _ => false,
    };
    let close = |index: Option<usize>| index.map(Room::Close);
    let cut = |index: Option<usize>| index.map(Room::Cut);
    if !held.is_light(newcomer, most) {
        let yields = |place: &Place| user(place.peer) == user(newcomer) || is_heavy(place);
        return close(longest(&|place| is_idle(place) && yields(place)))
            .or_else(|| cut(longest(&|place| is_stalled(place) && yields(place))))
            .unwrap_or(Room::None);
    }
    close(longest(&|place| is_idle(place) && is_heavy(place)))
        .or_else(|| close(longest(&is_idle)))
        .or_else(|| cut(longest(&is_heavy)))
        .or_else(|| cut(longest(&is_stalled)))
        .unwrap_or(Room::None)
}

/// The index of the waiting connection that comes first: the first light one, else the first.
pub fn first(places: &[Place], most: usize, mut waiting: impl Iterator<Item = Peer>) -> usize {
    let held = Held::of(places);
    waiting.position(|peer| held.is_light(peer, most)).unwrap_or(0)
}

/// The number of places of each user, counted once: newcomers can be many.
struct Held(HashMap<u32, usize>);

impl Held {
    fn of(places: &[Place]) -> Held {
        let mut held = HashMap::new();
        for uid in places.iter().filter(|place| !place.leaving).filter_map(|place| user(place.peer)) {
            *held.entry(uid).or_default() += 1;
        }
        Held(held)
    }

    /// `None` if the user is not known.
    fn by(&self, peer: Peer) -> usize {
        user(peer).and_then(|uid| self.0.get(&uid).copied()).unwrap_or(0)
    }

    fn is_light(&self, peer: Peer, most: usize) -> bool {
        self.by(peer) < quarter(most)
    }
}

fn user(peer: Peer) -> Option<u32> {
    match peer {
        Peer::Unix { uid, .. } => Some(uid),
        Peer::Tcp => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A time at which every unread reply counts as stalled.
    const LATER: Timestamp = Timestamp(1_000_000);

    /// Places by uid and phase, each since its index.
    fn places(taken: &[(u32, Phase)]) -> Vec<Place> {
        let place = |(index, (uid, phase)): (usize, &(u32, Phase))| Place {
            peer: peer(*uid),
            phase: *phase,
            since: Timestamp(index as u64),
            leaving: false,
        };
        taken.iter().enumerate().map(place).collect()
    }

    fn peer(uid: u32) -> Peer {
        if uid == 0 { Peer::Tcp } else { Peer::Unix { uid, gid: uid, pid: None } }
    }

    #[test]
    fn connection_to_close_at_the_limit() {
        use Phase::{Busy, Head, Idle, Replying};
        for (taken, most, newcomer, expected) in [
            // Below the limit every user gets a place, a lone user all of them.
            (&[(1, Busy), (1, Busy), (1, Busy)][..], 4, 1, Room::Free),
            // A lone user loses one of its own.
            (&[(1, Busy), (1, Idle), (1, Idle), (1, Idle)], 4, 1, Room::Close(1)),
            (&[(1, Busy), (1, Busy), (1, Busy), (1, Busy)], 4, 1, Room::None),
            (&[(1, Busy), (1, Head), (1, Replying), (1, Busy)], 4, 1, Room::Cut(1)),
            // A light user takes from a heavy one first, from its requests last.
            (&[(2, Idle), (1, Idle), (1, Idle), (1, Busy)], 4, 3, Room::Close(1)),
            (&[(2, Idle), (1, Busy), (1, Busy), (1, Busy)], 4, 3, Room::Close(0)),
            (&[(2, Busy), (1, Busy), (1, Head), (1, Busy)], 4, 3, Room::Cut(1)),
            // At its quarter a user takes from itself and from heavy ones only.
            (&[(2, Busy), (3, Idle), (1, Busy), (1, Idle)], 4, 2, Room::Close(3)),
            (&[(2, Busy), (3, Idle), (1, Busy), (1, Busy)], 4, 2, Room::None),
            // No user is heavy: no connection is cut.
            (&[(1, Busy), (2, Busy), (3, Busy), (4, Busy)], 4, 5, Room::None),
            (&[(1, Busy), (2, Busy), (3, Replying), (4, Head)], 4, 5, Room::Cut(2)),
            (&[(1, Busy), (2, Busy), (3, Replying), (4, Head)], 4, 4, Room::Cut(3)),
            // All TCP connections are alike.
            (&[(0, Busy), (0, Idle)], 2, 0, Room::Close(1)),
            (&[(0, Busy), (0, Head)], 2, 0, Room::Cut(1)),
            (&[(0, Busy), (0, Busy)], 2, 0, Room::None),
            (&[(1, Idle)], 1, 1, Room::Close(0)),
        ] {
            assert_eq!(find(&places(taken), most, peer(newcomer), LATER), expected, "{taken:?} {newcomer}");
        }
    }

    #[test]
    fn client_that_still_reads_is_not_cut() {
        let places = places(&[(1, Phase::Replying), (1, Phase::Busy)]);
        assert_eq!(find(&places, 2, peer(1), Timestamp(999)), Room::None);
        assert_eq!(find(&places, 2, peer(1), Timestamp(1000)), Room::Cut(0));
    }

    #[test]
    fn closing_connection_is_not_chosen_again() {
        let mut places = places(&[(1, Phase::Idle), (1, Phase::Idle)]);
        places[0].leaving = true;
        assert_eq!(find(&places, 2, peer(1), LATER), Room::Close(1));
        places[1].leaving = true;
        assert_eq!(find(&places, 2, peer(1), LATER), Room::None);
    }

    #[test]
    fn light_users_come_first() {
        let places = places(&[(1, Phase::Busy), (1, Phase::Busy)]);
        assert_eq!(first(&places, 2, [peer(1), peer(2)].into_iter()), 1);
        assert_eq!(first(&places, 2, [peer(1), peer(1)].into_iter()), 0);
    }
}

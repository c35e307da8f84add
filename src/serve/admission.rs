//! The admission of a pending connection at the limit, and the connection to close for it: pure.
//!
//! Below the limit any user gets a place, so that one busy bot can use them all. At the limit each user (Unix uid) has
//! a share of a quarter of the places, and is *over*, *at* or *under* it:
//!
//! | pending connection | connection to close, the first that exists |
//! | --- | --- |
//! | of a user under its share | the longest idle of a user over its share; of all; the longest in its phase of a user over its share; the longest stalled of all |
//! | of another user | the longest idle of its own or of a user over its share; the longest stalled of those |
//! | by TCP | the longest idle of all; the longest stalled |
//!
//! A connection is *stalled* if its request head is incomplete (clients send heads in one piece), or if its client has
//! read nothing of the reply for a second. Cutting a request loses nothing: a disconnect withdraws no message, and the
//! client can repeat it with the same ClientToken.

use std::collections::HashMap;
use std::time::Duration;

use crate::serve::activity::Phase;
use crate::serve::types::Peer;
use crate::time::Timestamp;

/// A reply of which nothing is read for this long has no reader.
const UNREAD: Duration = Duration::from_secs(1);

/// The state of an open connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionState {
    /// Its user.
    pub peer: Peer,
    /// The phase of the connection.
    pub phase: Phase,
    /// The start of the phase.
    pub since: Timestamp,
    /// True if it was asked to close.
    pub closing: bool,
}

/// The decision on a pending connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// A place is free.
    Admit,
    /// This connection is idle and is closed.
    CloseIdle(usize),
    /// This connection is not idle and is aborted.
    Abort(usize),
    /// No place is available yet.
    Wait,
}

/// A user's share of the places at the limit.
pub fn per_user_share(most: usize) -> usize {
    (most / 4).max(1)
}

/// Decides on a pending connection.
pub fn admit(open: &[ConnectionState], most: usize, pending: Peer, now: Timestamp) -> Admission {
    if open.len() < most.max(1) {
        return Admission::Admit;
    }
    let per_user = PerUser::of(open);
    let longest = |eligible: &dyn Fn(&ConnectionState) -> bool| {
        let staying = open.iter().enumerate().filter(|(_, connection)| !connection.closing && eligible(connection));
        staying.min_by_key(|(_, connection)| connection.since).map(|(index, _)| index)
    };
    let is_over_share = |connection: &ConnectionState| per_user.count(connection.peer) > per_user_share(most);
    let is_idle = |connection: &ConnectionState| connection.phase == Phase::Idle;
    let is_stalled = |connection: &ConnectionState| match connection.phase {
        Phase::ReadingHead => true,
        Phase::Writing | Phase::Stalled => now.since(connection.since) >= UNREAD,
        _ => false,
    };
    let close = |index: Option<usize>| index.map(Admission::CloseIdle);
    let cut = |index: Option<usize>| index.map(Admission::Abort);
    if !per_user.is_under_share(pending, most) {
        let yields = |connection: &ConnectionState| user(connection.peer) == user(pending) || is_over_share(connection);
        return close(longest(&|connection| is_idle(connection) && yields(connection)))
            .or_else(|| cut(longest(&|connection| is_stalled(connection) && yields(connection))))
            .unwrap_or(Admission::Wait);
    }
    close(longest(&|connection| is_idle(connection) && is_over_share(connection)))
        .or_else(|| close(longest(&is_idle)))
        .or_else(|| cut(longest(&is_over_share)))
        .or_else(|| cut(longest(&is_stalled)))
        .unwrap_or(Admission::Wait)
}

/// The index of the pending connection that comes first: the first of a user under its share, else the first.
pub fn next_pending(open: &[ConnectionState], most: usize, mut pending: impl Iterator<Item = Peer>) -> usize {
    let per_user = PerUser::of(open);
    pending.position(|peer| per_user.is_under_share(peer, most)).unwrap_or(0)
}

/// The number of places of each user, counted once: pending connections can be many.
struct PerUser(HashMap<u32, usize>);

impl PerUser {
    fn of(open: &[ConnectionState]) -> PerUser {
        let mut per_user = HashMap::new();
        for uid in open.iter().filter(|connection| !connection.closing).filter_map(|connection| user(connection.peer)) {
            *per_user.entry(uid).or_default() += 1;
        }
        PerUser(per_user)
    }

    /// `None` if the user is not known.
    fn count(&self, peer: Peer) -> usize {
        user(peer).and_then(|uid| self.0.get(&uid).copied()).unwrap_or(0)
    }

    fn is_under_share(&self, peer: Peer, most: usize) -> bool {
        self.count(peer) < per_user_share(most)
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

    /// Connections by uid and phase, each since its index.
    fn open(taken: &[(u32, Phase)]) -> Vec<ConnectionState> {
        let state = |(index, (uid, phase)): (usize, &(u32, Phase))| ConnectionState {
            peer: peer(*uid),
            phase: *phase,
            since: Timestamp(index as u64),
            closing: false,
        };
        taken.iter().enumerate().map(state).collect()
    }

    fn peer(uid: u32) -> Peer {
        if uid == 0 { Peer::Tcp } else { Peer::Unix { uid, gid: uid, pid: None } }
    }

    #[test]
    fn connection_to_close_at_the_limit() {
        use Phase::{Handling, Idle, ReadingHead, Writing};
        for (taken, most, pending, expected) in [
            // Below the limit every user gets a place, a lone user all of them.
            (&[(1, Handling), (1, Handling), (1, Handling)][..], 4, 1, Admission::Admit),
            // A lone user loses one of its own.
            (&[(1, Handling), (1, Idle), (1, Idle), (1, Idle)], 4, 1, Admission::CloseIdle(1)),
            (&[(1, Handling), (1, Handling), (1, Handling), (1, Handling)], 4, 1, Admission::Wait),
            (&[(1, Handling), (1, ReadingHead), (1, Writing), (1, Handling)], 4, 1, Admission::Abort(1)),
            // A user under its share takes from one over its share first, and from its requests last.
            (&[(2, Idle), (1, Idle), (1, Idle), (1, Handling)], 4, 3, Admission::CloseIdle(1)),
            (&[(2, Idle), (1, Handling), (1, Handling), (1, Handling)], 4, 3, Admission::CloseIdle(0)),
            (&[(2, Handling), (1, Handling), (1, ReadingHead), (1, Handling)], 4, 3, Admission::Abort(1)),
            // At its share a user takes from itself and from users over their share only.
            (&[(2, Handling), (3, Idle), (1, Handling), (1, Idle)], 4, 2, Admission::CloseIdle(3)),
            (&[(2, Handling), (3, Idle), (1, Handling), (1, Handling)], 4, 2, Admission::Wait),
            // No user is over its share: no request is aborted.
            (&[(1, Handling), (2, Handling), (3, Handling), (4, Handling)], 4, 5, Admission::Wait),
            (&[(1, Handling), (2, Handling), (3, Writing), (4, ReadingHead)], 4, 5, Admission::Abort(2)),
            (&[(1, Handling), (2, Handling), (3, Writing), (4, ReadingHead)], 4, 4, Admission::Abort(3)),
            // All TCP connections are alike.
            (&[(0, Handling), (0, Idle)], 2, 0, Admission::CloseIdle(1)),
            (&[(0, Handling), (0, ReadingHead)], 2, 0, Admission::Abort(1)),
            (&[(0, Handling), (0, Handling)], 2, 0, Admission::Wait),
            (&[(1, Idle)], 1, 1, Admission::CloseIdle(0)),
        ] {
            assert_eq!(admit(&open(taken), most, peer(pending), LATER), expected, "{taken:?} {pending}");
        }
    }

    #[test]
    fn client_that_still_reads_is_not_aborted() {
        let open = open(&[(1, Phase::Writing), (1, Phase::Handling)]);
        assert_eq!(admit(&open, 2, peer(1), Timestamp(999)), Admission::Wait);
        assert_eq!(admit(&open, 2, peer(1), Timestamp(1000)), Admission::Abort(0));
    }

    #[test]
    fn closing_connection_is_not_chosen_again() {
        let mut open = open(&[(1, Phase::Idle), (1, Phase::Idle)]);
        open[0].closing = true;
        assert_eq!(admit(&open, 2, peer(1), LATER), Admission::CloseIdle(1));
        open[1].closing = true;
        assert_eq!(admit(&open, 2, peer(1), LATER), Admission::Wait);
    }

    #[test]
    fn users_under_their_share_come_first() {
        let open = open(&[(1, Phase::Handling), (1, Phase::Handling)]);
        assert_eq!(next_pending(&open, 2, [peer(1), peer(2)].into_iter()), 1);
        assert_eq!(next_pending(&open, 2, [peer(1), peer(1)].into_iter()), 0);
    }
}

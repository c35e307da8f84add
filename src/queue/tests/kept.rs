//! Outcomes and dead letters: how long and how many are kept, and what counts towards the limits.

use super::*;

impl Rig {
    /// Accepts and dead-letters a message.
    fn dead_letter(&self, client_token: &str, text: &str) {
        self.accepted(message("a", client_token, text));
        let lease = self.lease(1).pop().unwrap();
        let settled = self.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
        assert!(matches!(settled, Settled::Dead { .. }));
    }

    fn known(&self, client_tokens: &[&str]) -> Vec<bool> {
        client_tokens.iter().map(|token| self.find(asker("a"), token) != Found::Unknown).collect()
    }
}

#[test]
fn dead_letter_is_kept_for_its_time_and_a_repeat_after_it_is_a_new_message() {
    let rig = Rig::with(|options| options.outcomes_kept_for = Duration::from_secs(1));
    rig.dead_letter("1", "x");
    rig.skip(Duration::from_secs(86400));
    assert_eq!((rig.overview().dead, rig.known(&["1"])), (1, vec![true]), "longer than outcomes are");
    assert!(matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: true, .. }));
    rig.skip(Duration::from_secs(6 * 86400 - 10));
    assert_eq!(rig.overview().dead, 1);
    let rig = rig.reopen();
    rig.skip(Duration::from_secs(20));
    assert_eq!((rig.overview().dead, rig.known(&["1"])), (0, vec![false]));
    assert!(matches!(rig.push(message("a", "1", "x")), Verdict::Accepted { repeat: false, .. }));
}

#[test]
fn oldest_dead_letters_go_first_when_there_are_too_many() {
    let rig = Rig::with(|options| (options.dead_max, options.outcomes_kept_for) = (2, Duration::from_secs(60)));
    for number in ["1", "2", "3", "4"] {
        rig.dead_letter(number, number);
        rig.skip(Duration::from_secs(2));
    }
    assert_eq!((rig.overview().dead, rig.known(&["1", "2", "3", "4"])), (2, vec![true; 4]), "their outcomes stay");
    rig.skip(Duration::from_secs(60));
    assert_eq!((rig.overview().dead, rig.known(&["1", "2", "3", "4"])), (2, vec![false, false, true, true]));
}

#[test]
fn delivered_and_dead_messages_do_not_count_as_queued() {
    let rig = Rig::with(|options| options.messages_max = 2);
    for number in 0..5 {
        rig.dead_letter(&format!("dead-{number}"), "x");
        rig.accepted(message("a", &format!("delivered-{number}"), "x"));
        rig.drain();
    }
    assert_eq!((rig.overview().dead, rig.overview().queued), (5, 0));
    rig.push_all(vec![message("a", "1", "x"), message("a", "2", "x")]);
    assert_eq!(rig.rejected(message("a", "3", "x")), Rejection::Full(Full::Messages { queued: 2, most: 2 }, None));
}

#[test]
fn dead_letters_count_in_the_bytes_until_they_are_pruned() {
    // The ballast counts too.
    let most = 24 << 20;
    let day = Duration::from_secs(86400);
    let rig = Rig::with(|options| (options.bytes_max, options.dead_kept_for) = (most, day));
    let text = "x".repeat(3500);
    let full = (0..20_000).find_map(|number| {
        match rig.push(message("a", &number.to_string(), &text)) {
            Verdict::Rejected(rejection) => return Some(rejection),
            Verdict::Accepted { .. } => {}
        }
        let lease = rig.lease(1).pop().unwrap();
        rig.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
        None
    });
    assert!(matches!(full, Some(Rejection::Full(Full::Bytes { bytes, .. }, _)) if bytes >= most), "{full:?}");
    assert_eq!(rig.overview().queued, 0, "it is full of dead letters alone");
    rig.skip(day + Duration::from_secs(1));
    let empty = (0..600).any(|_| {
        rig.skip(Duration::from_secs(2));
        rig.overview().dead == 0 && rig.overview().full.is_none()
    });
    assert!(empty, "{:?}", rig.overview());
    rig.accepted(message("a", "at last", &text));
}

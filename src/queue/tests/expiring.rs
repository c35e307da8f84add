//! The estimated loss of a real store; `ops::estimate` has the tables.

use super::*;
use crate::pacer::{self, Budget, Pacer};

fn paced(rate: f64) -> Rig {
    let rig = Rig::new();
    let options = pacer::Options { quota_rate: rate, rate_max: rate, rate_min: rate, ..pacer::Options::default() };
    rig.queue.paced_by(Budget::new(Pacer::new(options, rig.clock.now(), 7)));
    rig
}

impl Rig {
    fn foreseen(&self) -> Expiring {
        self.skip(Duration::from_secs(6));
        self.overview().expiring
    }
}

#[test]
fn loss_of_more_messages_than_are_read_is_estimated_within_a_twentieth() {
    for (conversations, expected) in [(1, 11_000), (50, 11_000), (20_000, 11_000)] {
        let rig = paced(10.0);
        for first in (0..20_000).step_by(1000) {
            let some = first..first + 1000;
            rig.push_all(some.map(|n| message(&format!("c{}", n % conversations), &n.to_string(), "x")).collect());
        }
        let Expiring { messages, first } = rig.foreseen();
        let near = (expected - 550)..=(expected + 550);
        assert!(near.contains(&messages), "{messages} of {conversations}");
        let left = first.unwrap().since(rig.clock.now());
        assert!((800..=900).contains(&left.as_secs()), "{left:?}");
    }
}

#[test]
fn only_messages_that_will_expire_count_as_lost_and_a_pause_adds_to_them() {
    let rig = paced(1.0);
    rig.push_all((0..100).map(|n| message(&format!("c{n}"), "1", "x")).collect());
    assert_eq!(rig.foreseen(), Expiring::default());
    rig.pause("");
    rig.skip(Duration::from_secs(700));
    assert_eq!(rig.foreseen().messages, 100, "all of them end within five minutes");
    rig.resume();
    let sent = rig.lease(40);
    sent.into_iter().for_each(|lease| _ = rig.settle(lease, delivered()));
    // If the settlements took long, there is a new estimate, and it may be less.
    assert!(rig.overview().expiring.messages <= 60, "an estimate of before is limited to what is queued");
    rig.drain();
    assert_eq!(rig.overview().expiring, Expiring::default(), "nothing is queued");
    assert_eq!(rig.foreseen(), Expiring::default());
}

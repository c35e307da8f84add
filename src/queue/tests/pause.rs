//! What a pause holds up and what it does not, who ends it, and what three refused tokens say.

use super::*;

fn refuse(rig: &Rig, bearer: &str) -> Settled {
    rig.accepted(message(bearer, "1", bearer));
    let lease = rig.lease(1).pop().unwrap();
    assert!(lease.connection_token == token(bearer));
    rig.settle(lease, denied("Access denied"))
}

fn reason(rig: &Rig) -> Option<PauseReason> {
    rig.overview().paused.map(|pause| pause.reason)
}

#[test]
fn paused_queue_accepts_and_settles_but_gives_nothing_out_until_it_is_resumed() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "one"), message("b", "1", "two")]);
    let in_flight = rig.lease(1).pop().unwrap();
    let since = rig.clock.now();
    rig.pause("the instance moves");
    assert_eq!(rig.settle(in_flight, delivered()), Settled::Delivered);
    let Status::Queued { before, .. } = rig.accepted(message("c", "1", "three")).status else { panic!("it is queued") };
    assert_eq!(before, None, "nobody can tell");
    assert!(rig.lease(9).is_empty());
    let rig = rig.reopen();
    assert!(rig.lease(9).is_empty(), "what an operator ordered stands after a restart");
    rig.pause("it still moves");
    let pause = rig.overview().paused.unwrap();
    assert_eq!(pause.reason, PauseReason::Operator("it still moves".into()));
    assert!(pause.since.since(since) < Duration::from_secs(60) && pause.since >= since);
    rig.resume();
    assert_eq!(reason(&rig), None);
    assert_eq!(rig.drain(), ["two", "three"]);
    assert_eq!(reason(&rig.reopen()), None);
}

#[test]
fn lifetimes_go_on_while_sending_is_paused() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "x"));
    rig.pause("");
    rig.skip(Duration::from_secs(901));
    assert_eq!((rig.overview().queued, rig.overview().dead), (0, 1));
    let hurried = Submission { lifetime: Some(Duration::from_secs(1)), ..message("a", "2", "x") };
    let verdict = rig.runtime.block_on(rig.queue.accept(vec![hurried], 0.001)).unwrap().remove(0);
    assert!(matches!(verdict, Verdict::Accepted { .. }), "it may be resumed at once: nobody can call it too late");
}

#[test]
fn pause_and_resume_wake_those_who_wait() {
    let rig = Rig::new();
    rig.accepted(message("a", "1", "x"));
    let queue = rig.queue.clone();
    rig.runtime.block_on(async {
        queue.poked().await;
        let drained = queue.drained();
        queue.pause(String::new()).await.unwrap();
        drained.await;
        let poked = queue.poked();
        queue.resume().await.unwrap();
        poked.await;
    });
}

#[test]
fn resuming_forgets_every_refused_token() {
    let rig = Rig::new();
    rig.push_all(vec![message("ok", "1", "ok")]);
    rig.drain();
    for bearer in ["a", "b"] {
        assert!(matches!(refuse(&rig, bearer), Settled::Held(_)));
        assert!(matches!(rig.rejected(message(bearer, "2", "x")), Rejection::TokenRefused(_)));
        // Those held since the same millisecond have no order.
        rig.clock.skip(Duration::from_secs(1));
    }
    rig.resume();
    assert_eq!(rig.overview().held, 0);
    rig.accepted(message("a", "2", "a again"));
    assert_eq!(rig.drain(), ["a", "b", "a again"]);
}

#[test]
fn three_refused_tokens_where_nothing_was_ever_delivered_pause_and_bury_nothing() {
    let rig = Rig::new();
    for bearer in ["a", "b"] {
        refuse(&rig, bearer);
        assert_eq!(reason(&rig), None);
    }
    // Even where somebody waits for it: what may be the relay's fault is not the message's.
    let third = rig.accepted(message("c", "1", "c"));
    let queue = rig.queue.clone();
    let state = rig.runtime.block_on(async {
        let waiting = async { queue.outcome(third.id, Duration::from_millis(50)).await.unwrap().unwrap() };
        let settling = async {
            let lease = queue.lease(1, Duration::ZERO).await.unwrap().leases.pop().unwrap();
            queue.settle(lease, denied("Access denied"), None).await.unwrap()
        };
        tokio::join!(waiting, settling).0
    });
    drop(queue);
    assert!(matches!(state.status, Status::Queued { .. }), "{state:?}");
    assert_eq!(reason(&rig), Some(PauseReason::AllRefused));
    rig.skip(Duration::from_secs(300));
    assert!(rig.lease(9).is_empty());
    assert_eq!((rig.overview().queued, rig.overview().dead), (3, 0), "token_wait is over, and nobody died of it");
    // A start, with the region put right, finds out anew.
    let rig = rig.reopen();
    assert_eq!(reason(&rig), None);
    let mut sent = rig.drain();
    sent.sort_unstable();
    assert_eq!(sent, ["a", "b", "c"], "of three conversations any may be the first");
}

#[test]
fn one_token_refused_three_times_says_nothing_of_the_destination() {
    let rig = Rig::new();
    for round in 0..3 {
        rig.accepted(message("a", &round.to_string(), "x"));
        let lease = rig.lease(1).pop().unwrap();
        rig.settle(lease, denied("Access denied"));
        rig.clock.skip(Duration::from_secs(121));
        assert!(rig.lease(1).is_empty());
    }
    assert_eq!(reason(&rig), None);
    assert_eq!(rig.overview().dead, 3);
}

#[test]
fn destination_that_has_delivered_may_refuse_any_number_and_a_new_one_may_not() {
    let rig = Rig::new();
    rig.accepted(disconnect("gone", "1"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, Disposition::Deliver(Receipt::default()));
    rig.accepted(message("ok", "1", "x"));
    rig.drain();
    let rig = rig.reopen();
    for bearer in ["a", "b", "c", "d"] {
        refuse(&rig, bearer);
    }
    assert_eq!(reason(&rig), None, "chats that are over, in the right region");
    let Rig { folder, clock, mut options, queue, writer, .. } = rig;
    drop(queue);
    writer.join().unwrap().unwrap();
    options.destination = "elsewhere".into();
    let rig = Rig::open(folder, options, clock);
    for bearer in ["e", "f", "g"] {
        refuse(&rig, bearer);
    }
    assert_eq!(reason(&rig), Some(PauseReason::AllRefused));
}

#[test]
fn disconnects_that_count_as_done_prove_nothing() {
    let rig = Rig::new();
    rig.accepted(disconnect("gone", "1"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, Disposition::Deliver(Receipt::default()));
    for bearer in ["a", "b", "c"] {
        refuse(&rig, bearer);
    }
    assert_eq!(reason(&rig), Some(PauseReason::AllRefused));
}

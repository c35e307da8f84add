//! Pauses of sending, and a destination that refuses every token.

use super::*;

fn refuse(rig: &Rig, bearer: &str) -> Settled {
    rig.accepted(message(bearer, "1", bearer));
    let lease = rig.lease(1).pop().unwrap();
    assert!(lease.connection_token == token(bearer));
    rig.settle(lease, denied("Access denied"))
}

fn all_refused(rig: &Rig) -> bool {
    let overview = rig.overview();
    assert_eq!(overview.paused, None, "it is no pause");
    overview.all_refused.is_some()
}

#[test]
fn paused_queue_accepts_and_settles_but_leases_nothing_until_it_is_resumed() {
    let rig = Rig::new();
    rig.push_all(vec![message("a", "1", "one"), message("b", "1", "two")]);
    let in_flight = rig.lease(1).pop().unwrap();
    let since = rig.clock.now();
    rig.pause("the instance moves");
    assert_eq!(rig.settle(in_flight, delivered()), Settled::Delivered);
    let Status::Queued { before, .. } = rig.accepted(message("c", "1", "three")).status else { panic!("it is queued") };
    assert_eq!(before, None, "it cannot be estimated");
    assert!(rig.lease(9).is_empty());
    let rig = rig.reopen();
    assert!(rig.lease(9).is_empty(), "what an operator ordered stands after a restart");
    rig.pause("it still moves");
    let pause = rig.overview().paused.unwrap();
    assert_eq!(pause.why, "it still moves");
    rig.pause("");
    assert_eq!(rig.overview().paused.unwrap().why, "it still moves", "a pause without a reason keeps the one before");
    assert!(pause.since.since(since) < Duration::from_secs(60) && pause.since >= since);
    rig.resume();
    assert_eq!(rig.overview().paused, None);
    assert_eq!(rig.drain(), ["two", "three"]);
    assert_eq!(rig.reopen().overview().paused, None);
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
    assert!(matches!(verdict, Verdict::Accepted { .. }), "it may be resumed at once, so it is not too late");
}

#[test]
fn full_queue_names_the_reason_why_it_does_not_empty() {
    let reason = |rig: &Rig| match rig.rejected(message("z", "9", "x")) {
        Rejection::Full(_, stopped) => stopped,
        rejection => panic!("{rejection:?}"),
    };
    let rig = Rig::with(|options| options.messages_max = 3);
    for bearer in ["a", "b", "c"] {
        refuse(&rig, bearer);
    }
    assert_eq!(reason(&rig), Some(Stopped::AllRefused));
    rig.pause("");
    assert_eq!(reason(&rig), Some(Stopped::Paused));
    rig.resume();
    assert_eq!(reason(&rig), None);
}

#[test]
fn pause_and_resume_wake_waiting_tasks() {
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
fn resuming_resets_every_refusal() {
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

/// A queue whose destination refused three tokens and has never delivered a message.
fn all_refused_rig() -> Rig {
    let rig = Rig::new();
    for bearer in ["a", "b", "c"] {
        assert!(!all_refused(&rig));
        refuse(&rig, bearer);
    }
    assert!(all_refused(&rig));
    rig
}

#[test]
fn caller_that_waits_gets_the_third_refusal_itself() {
    let rig = Rig::new();
    for bearer in ["a", "b"] {
        refuse(&rig, bearer);
    }
    let third = rig.accepted(message("c", "1", "c"));
    let queue = rig.queue.clone();
    let state = rig.runtime.block_on(async {
        let waiting = async { queue.outcome(third.id, Duration::from_secs(60)).await.unwrap().unwrap() };
        let settling = async {
            let lease = queue.lease(LeaseRequest::any(1)).await.unwrap().leases.pop().unwrap();
            queue.settle(lease, None, denied("Access denied"), None).await.unwrap()
        };
        tokio::join!(waiting, settling).0
    });
    drop(queue);
    assert!(matches!(state.status, Status::Dead { reason: Reason::ChatOver, .. }), "{state:?}");
    assert!(all_refused(&rig));
}

#[test]
fn refused_queue_tries_one_new_token_each_probe_max_and_dead_letters_nothing() {
    let rig = all_refused_rig();
    rig.push_all(vec![message("d", "1", "d"), message("e", "1", "e")]);
    let work = rig.runtime.block_on(rig.queue.lease(LeaseRequest::any(9))).unwrap();
    assert!(work.leases.is_empty() && work.next_due.is_some(), "{work:?}");
    rig.clock.skip(rig.options.probe_max);
    let mut leases = rig.lease(9);
    assert_eq!(leases.iter().map(text).collect::<Vec<_>>(), ["d"], "one, with a token that was not refused yet");
    assert!(rig.lease(9).is_empty());
    rig.settle(leases.pop().unwrap(), denied("Access denied"));
    rig.skip(Duration::from_secs(300));
    assert_eq!(rig.lease(9).iter().map(text).collect::<Vec<_>>(), ["e"]);
    assert_eq!((rig.overview().queued, rig.overview().dead), (5, 0), "token_wait is over, and nothing is dead of it");
}

#[test]
fn only_the_message_that_is_tried_next_has_an_outlook_while_every_token_is_refused() {
    let rig = all_refused_rig();
    let outlook = |state: MessageState| match state.status {
        Status::Queued { next_attempt, before, .. } => (next_attempt, before),
        other => panic!("{other:?}"),
    };
    let (next, before) = outlook(rig.accepted(message("d", "1", "d")));
    assert_eq!(before, Some(0));
    assert!(next.is_some_and(|next| next > rig.clock.now() && next <= rig.clock.now() + rig.options.probe_max));
    assert_eq!(outlook(rig.accepted(message("e", "1", "e"))), (None, None));
    assert_eq!(outlook(rig.accepted(message("d", "2", "d again"))), (None, None));
}

#[test]
fn first_delivery_ends_all_refused_and_refused_tokens_stay_refused() {
    let rig = all_refused_rig();
    rig.push_all(vec![message("d", "1", "d"), message("e", "1", "e"), message("f", "1", "f")]);
    rig.clock.skip(rig.options.probe_max);
    let lease = rig.lease(9).pop().unwrap();
    assert_eq!(rig.settle(lease, delivered()), Settled::Delivered);
    assert!(!all_refused(&rig));
    assert_eq!(rig.drain(), ["e", "f"], "at once, and none of those that were refused");
    rig.skip(rig.options.token_wait);
    assert!(rig.lease(9).is_empty());
    assert_eq!((rig.overview().queued, rig.overview().dead), (0, 3));
}

#[test]
fn restart_and_resume_try_every_refused_token_again() {
    for restarted in [true, false] {
        let mut rig = all_refused_rig();
        rig.clock.skip(Duration::from_secs(300));
        if restarted {
            rig = rig.reopen();
        } else {
            rig.resume();
        }
        assert!(!all_refused(&rig));
        let mut sent = rig.drain();
        sent.sort_unstable();
        assert_eq!(sent, ["a", "b", "c"], "of three conversations any may be the first");
    }
}

#[test]
fn pause_and_resume_replace_all_refused() {
    let rig = all_refused_rig();
    rig.pause("the region is wrong");
    assert_eq!(rig.overview().paused.unwrap().why, "the region is wrong");
    rig.clock.skip(Duration::from_secs(300));
    assert!(rig.lease(9).is_empty());
    rig.resume();
    assert!(!all_refused(&rig));
    assert_eq!(rig.drain().len(), 3);
}

#[test]
fn one_token_refused_three_times_does_not_begin_all_refused() {
    let rig = Rig::new();
    for round in 0..3 {
        rig.accepted(message("a", &round.to_string(), "x"));
        let lease = rig.lease(1).pop().unwrap();
        rig.settle(lease, denied("Access denied"));
        rig.clock.skip(Duration::from_secs(121));
        assert!(rig.lease(1).is_empty());
    }
    assert!(!all_refused(&rig));
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
    assert!(!all_refused(&rig), "chats that are over, in the right region");
    let Rig { folder, clock, mut options, queue, thread, .. } = rig;
    drop(queue);
    thread.join().unwrap().unwrap();
    options.destination = "elsewhere".into();
    let rig = Rig::open(folder, options, clock);
    for bearer in ["e", "f", "g"] {
        refuse(&rig, bearer);
    }
    assert!(all_refused(&rig));
}

#[test]
fn disconnect_with_a_refused_token_is_rejected_while_every_token_is_refused() {
    let rig = Rig::new();
    for bearer in ["a", "b", "c"] {
        refuse(&rig, bearer);
    }
    assert!(all_refused(&rig));
    assert!(matches!(rig.rejected(disconnect("a", "bye")), Rejection::TokenRefused(_)));
}

#[test]
fn disconnects_that_count_as_delivered_do_not_prove_the_destination() {
    let rig = Rig::new();
    rig.accepted(disconnect("gone", "1"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, Disposition::Deliver(Receipt::default()));
    for bearer in ["a", "b", "c"] {
        refuse(&rig, bearer);
    }
    assert!(all_refused(&rig));
}

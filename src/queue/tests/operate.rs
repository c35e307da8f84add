//! The actions of operators: list, show, redrive, delete.

use super::*;

impl Rig {
    pub(super) fn seek(&self, name: &str) -> Lookup {
        self.runtime.block_on(self.queue.seek(name)).unwrap()
    }

    /// All messages of a selection, a few at a time.
    pub(super) fn list(&self, of: &Selection) -> Vec<MessageView> {
        let (mut all, mut next) = (Vec::new(), Some(of.start()));
        while let Some(after) = next {
            let page = self.runtime.block_on(self.queue.list(of.clone(), after, 50)).unwrap();
            all.extend(page.messages);
            next = page.next;
        }
        all
    }

    pub(super) fn redrive(&self, id: MessageId, with: Redrive) -> Result<(), ActionError> {
        self.runtime.block_on(self.queue.redrive(id, with)).unwrap().map(|_| ())
    }

    pub(super) fn delete(&self, id: MessageId) -> Result<(), ActionError> {
        self.runtime.block_on(self.queue.delete(id)).unwrap().map(|_| ())
    }

    /// The number of redriven messages.
    pub(super) fn redrive_all(&self, of: &Selection) -> u64 {
        let (mut done, mut next) = (0, Some(Selection { state: Some(StateFilter::Dead), ..of.clone() }.start()));
        while let Some(after) = next {
            let sweep = self.runtime.block_on(self.queue.redrive_all(of.clone(), (after, 50), false)).unwrap();
            done += sweep.done;
            next = sweep.next;
        }
        done
    }

    /// The number of pieces of contents in the store, which this closes.
    fn pieces(self) -> usize {
        let Rig { folder: _folder, options, queue, thread, runtime, .. } = self;
        drop((queue, runtime));
        thread.join().unwrap().unwrap();
        crate::storage::Image::read(&options.path, |_, _| ()).unwrap().keys(b'p').count()
    }

    /// `messages_dead_total` by its reason.
    fn dead_letters_counted(&self, reason: &str) -> f64 {
        let families = self.metrics.registry().gather();
        let family = families.iter().find(|family| family.name().ends_with("messages_dead_total")).unwrap();
        let of =
            family.get_metric().iter().filter(|metric| metric.get_label().iter().any(|label| label.value() == reason));
        of.map(|metric| metric.get_counter().get_value()).sum()
    }

    /// The numbers of deleted messages and of messages in flight.
    pub(super) fn delete_all(&self, label: &str) -> (u64, u64) {
        let of = Selection { conversation: Some(label.into()), ..Selection::default() };
        let (mut done, mut in_flight, mut next) = (0, 0, Some(of.start()));
        while let Some(after) = next {
            let sweep = self.runtime.block_on(self.queue.delete_all(of.clone(), (after, 50), false)).unwrap();
            (done, in_flight) = (done + sweep.done, in_flight + sweep.in_flight);
            next = sweep.next;
        }
        (done, in_flight)
    }
}

/// Dead-letters all due messages, and returns their ids.
fn dead_letter_all(rig: &Rig) -> Vec<MessageId> {
    let mut dead = Vec::new();
    while let Some(lease) = rig.lease(1).pop() {
        dead.push(lease.id);
        rig.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
    }
    dead
}

fn dead_of(rig: &Rig, bearer: &str, client_token: &str) -> Option<(Reason, bool)> {
    match rig.find(asker(bearer), client_token) {
        Found::State(MessageState { status: Status::Dead { reason, maybe_delivered, .. }, .. }) => {
            Some((reason, maybe_delivered))
        }
        _ => None,
    }
}

fn say(text: &str) -> Option<Body> {
    Some(message("x", "x", text).body)
}

#[test]
fn redriven_message_goes_at_its_old_place_with_its_client_token_and_a_fresh_lifetime() {
    let rig = Rig::new();
    let lifetime = Some(Duration::from_secs(100));
    let first = rig.accepted(Submission { lifetime, ..message("a", "1", "one") });
    dead_letter_all(&rig);
    rig.push_all(vec![message("a", "2", "two"), message("a", "3", "three")]);
    rig.skip(Duration::from_secs(200));
    let before = rig.clock.now();
    let seen = rig.runtime.block_on(rig.queue.redrive(first.id, Redrive::default())).unwrap().unwrap();
    assert_eq!((seen.id, seen.attempts), (first.id, 0));
    let fresh = before + Duration::from_secs(100)..=rig.clock.now() + Duration::from_secs(100);
    assert!(fresh.contains(&seen.deadline));
    assert_eq!(rig.redrive(first.id, Redrive::default()), Err(ActionError::Queued));
    assert_eq!(rig.overview().dead, 0);
    let rig = rig.reopen();
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!((lease.client_token.as_str(), lease.id, &*text(&lease)), ("1", first.id, "one"));
    rig.settle(lease, delivered());
    assert_eq!(rig.drain(), ["two", "three"]);
    assert_eq!(rig.redrive(first.id, Redrive::default()), Err(ActionError::Gone));
    assert_eq!(rig.seek(&first.id.to_string()), Lookup::Gone);
}

#[test]
fn redriven_message_never_goes_before_one_that_may_have_arrived_and_expires_after_its_new_lifetime() {
    let rig = Rig::new();
    rig.accepted(Submission { lifetime: Some(Duration::from_secs(60)), ..message("a", "1", "one") });
    let dead = dead_letter_all(&rig)[0];
    rig.push_all(vec![message("a", "2", "two"), message("a", "3", "three")]);
    let lease = rig.lease(1).pop().unwrap();
    let now = rig.clock.now();
    rig.settle(lease, Disposition::Retry { due: now, answer_lost: true, strike: false, counted: false });
    rig.redrive(dead, Redrive::default()).unwrap();
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!(text(&lease), "two");
    rig.skip(Duration::from_secs(61));
    assert_eq!(dead_of(&rig, "a", "1"), Some((Reason::Expired, false)));
    rig.redrive(dead, Redrive::default()).unwrap();
    rig.settle(lease, delivered());
    assert_eq!(rig.drain(), ["one", "three"]);
}

#[test]
fn message_that_may_have_arrived_is_redriven_with_the_token_that_it_was_sent_with() {
    let rig = Rig::new();
    let id = rig.accepted(message("old", "1", "one")).id;
    let lease = rig.lease(1).pop().unwrap();
    let due = rig.clock.now() + Duration::from_secs(5);
    rig.settle(lease, Disposition::Retry { due, answer_lost: true, strike: false, counted: false });
    rig.skip(Duration::from_secs(901));
    assert_eq!(dead_of(&rig, "old", "1"), Some((Reason::Expired, true)));
    rig.accepted(Submission { replaces: Some(token("old")), ..message("new", "2", "two") });
    rig.redrive(id, Redrive { token: Some(token("new")), body: None }).unwrap();
    assert_eq!(rig.overview().answer_lost, 1);
    let lease = rig.lease(1).pop().unwrap();
    assert!(text(&lease) == "one" && lease.connection_token == token("old"));
    rig.settle(lease, denied("Access denied"));
    let lease = rig.lease(1).pop().unwrap();
    assert!(text(&lease) == "one" && lease.connection_token == token("new"));
}

#[test]
fn edited_message_moves_into_a_conversation_that_has_its_first_client_token() {
    let rig = Rig::new();
    let id = rig.accepted(message("old", "1", "one")).id;
    dead_letter_all(&rig);
    rig.accepted(message("new", "1", "another one"));
    let edited = Redrive { token: None, body: Some(message("x", "x", "edited").body) };
    assert_eq!(rig.redrive(id, edited), Ok(()));
    dead_letter_all(&rig);
    rig.accepted(message("new", "2", "two"));
    assert_eq!(rig.redrive(id, Redrive { token: Some(token("new")), body: None }), Ok(()), "it has its own");
}

#[test]
fn redrive_with_a_token_moves_the_message_and_repeats_in_its_old_conversation_are_answered_as_before() {
    let rig = Rig::new();
    let id = rig.accepted(message("old", "1", "one")).id;
    dead_letter_all(&rig);
    rig.accepted(in_conversation("k", message("new", "other", "other")));
    rig.accepted(in_conversation("k", message("new", "1", "another one")));
    let with = || Redrive { token: Some(token("new")), body: None };
    assert_eq!(rig.redrive(id, with()), Err(ActionError::Taken));
    assert_eq!((rig.overview().dead, rig.overview().queued), (1, 2));
    assert_eq!(rig.drain(), ["other", "another one"]);
    rig.skip(Duration::from_secs(3601));
    rig.accepted(in_conversation("k", message("new", "other", "other")));
    let seen = rig.runtime.block_on(rig.queue.redrive(id, with())).unwrap().unwrap();
    assert_eq!((&*seen.conversation, seen.id.sequence), ("k", id.sequence));
    assert_eq!(dead_of(&rig, "old", "1"), Some((Reason::Invalid, false)));
    assert!(matches!(rig.push(message("old", "1", "one")), Verdict::Accepted { repeat: true, .. }));
    assert!(matches!(
        rig.push(in_conversation("k", message("new", "1", "one"))),
        Verdict::Accepted { repeat: true, state, .. } if state.id.sequence == id.sequence
    ));
    let lease = rig.lease(1).pop().unwrap();
    assert!(text(&lease) == "one" && lease.connection_token == token("new") && &*lease.label == "k");
    rig.settle(lease, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
    // And back again, with an unused token.
    rig.redrive(seen.id, Redrive { token: Some(token("old")), body: None }).unwrap();
    assert_eq!(rig.overview().dead, 0);
    assert_eq!(rig.drain(), ["one", "other"]);
    let Found::State(MessageState { status: Status::Delivered(_), .. }) = rig.find(asker("old"), "1") else {
        panic!("it was delivered")
    };
    rig.skip(Duration::from_secs(3601));
    assert_eq!(rig.find(asker("old"), "1"), Found::Unknown, "what it left behind is pruned too");
}

#[test]
fn changed_contents_are_another_message_to_connect_and_the_same_to_the_bot() {
    let rig = Rig::new();
    let (short, long) = ("short", "long ".repeat(2000));
    let id = rig.accepted(message("a", "1", short)).id;
    // From short to long, to another long one, and to a short one: pieces come, change and go.
    for says in [&long, &long.to_uppercase(), short, &long] {
        dead_letter_all(&rig);
        let before = rig.runtime.block_on(rig.queue.show(id, true)).unwrap().unwrap();
        let seen = rig.runtime.block_on(rig.queue.redrive(id, Redrive { token: None, body: say(says) }));
        let seen = seen.unwrap().unwrap();
        assert_ne!(seen.client_token, before.client_token);
        assert!(
            matches!(rig.push(message("a", "1", short)), Verdict::Accepted { repeat: true, state, .. } if state.id == id)
        );
        if *says != *short {
            assert!(matches!(rig.rejected(message("a", "1", says)), Rejection::OtherContents(_)));
        }
        let lease = rig.lease(1).pop().unwrap();
        assert!(text(&lease) == *says && *lease.client_token.as_str() == *seen.client_token);
        rig.settle(lease, Disposition::Keep);
    }
    let rig = rig.killed();
    assert!(rig.runtime.block_on(rig.queue.show(id, true)).unwrap().unwrap().body == say(&long));
    // Those that were on disk before, and those that come and go between two checkpoints.
    dead_letter_all(&rig);
    let rig = rig.reopen();
    rig.redrive(id, Redrive { token: None, body: say(&long.to_uppercase()) }).unwrap();
    assert_eq!(rig.drain(), [long.to_uppercase()]);
    assert!(matches!(rig.accepted(message("a", "1", short)).status, Status::Delivered(_)));
    assert_eq!(rig.pieces(), 0);
}

#[test]
fn redrive_forgets_that_the_token_was_refused() {
    let rig = Rig::new();
    let id = rig.accepted(message("a", "1", "one")).id;
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, denied("Access denied"));
    rig.clock.skip(Duration::from_secs(121));
    assert!(rig.lease(1).is_empty());
    rig.redrive(id, Redrive::default()).unwrap();
    rig.accepted(message("a", "2", "two"));
    let lease = rig.lease(1).pop().unwrap();
    rig.settle(lease, denied("Access denied"));
    assert_eq!(rig.overview().held, 1);
    assert!(matches!(rig.rejected(message("a", "3", "three")), Rejection::TokenRefused(_)));
    rig.delete(id).unwrap();
    assert_eq!(rig.overview().held, 1);
    rig.redrive(id, Redrive::default()).unwrap();
    assert_eq!(rig.overview().held, 0, "and what was held for it goes on");
    rig.accepted(message("a", "3", "three"));
    assert_eq!(rig.drain(), ["one", "two", "three"]);
}

#[test]
fn deleted_message_is_a_dead_letter_and_its_conversation_goes_on() {
    let rig = Rig::new();
    rig.push_all((1..=3).map(|n| message("a", &n.to_string(), &n.to_string())).collect());
    let ids: Vec<MessageId> = rig.list(&Selection::default()).iter().map(|seen| seen.id).collect();
    let lease = rig.lease(1).pop().unwrap();
    assert_eq!(rig.delete(ids[0]), Err(ActionError::InFlight));
    let now = rig.clock.now();
    rig.settle(
        lease,
        Disposition::Retry { due: now + Duration::from_secs(50), answer_lost: true, strike: false, counted: false },
    );
    let (queue, second) = (rig.queue.clone(), ids[1]);
    let told = rig.runtime.spawn(async move { queue.outcome(second, Duration::from_secs(30)).await });
    rig.overview();
    rig.delete(ids[0]).unwrap();
    rig.delete(ids[1]).unwrap();
    let told = rig.runtime.block_on(told).unwrap().unwrap().unwrap();
    assert!(matches!(told.status, Status::Dead { reason: Reason::Deleted, maybe_delivered: false, .. }));
    assert_eq!(dead_of(&rig, "a", "1"), Some((Reason::Deleted, true)));
    assert_eq!(rig.dead_letters_counted("deleted"), 2.0);
    assert_eq!((rig.overview().answer_lost, rig.overview().dead), (0, 2));
    assert_eq!(rig.delete(ids[1]), Ok(()), "the same again changes nothing");
    assert!(matches!(rig.push(message("a", "1", "1")), Verdict::Accepted { repeat: true, .. }));
    assert_eq!(rig.drain(), ["3"]);
    // One that was dead already is of that reason from now on.
    rig.accepted(message("b", "1", "x"));
    let dead = dead_letter_all(&rig)[0];
    rig.delete(dead).unwrap();
    assert_eq!(dead_of(&rig, "b", "1"), Some((Reason::Deleted, false)));
    assert_eq!(rig.dead_letters_counted("deleted"), 2.0, "it is not counted twice");
    assert_eq!(rig.redrive_all(&Selection::default()), 0, "deleted messages are redriven only on request");
    assert_eq!(rig.redrive_all(&Selection { reason: Some(Reason::Deleted), ..Selection::default() }), 3);
    assert_eq!(rig.drain().len(), 3);
}

#[test]
fn redriven_messages_keep_their_order_before_newer_messages() {
    let rig = Rig::new();
    let numbers: Vec<String> = (0..700).map(|n| format!("{n:04}")).collect();
    let say = |some: &[String]| rig.push_all(some.iter().map(|n| message("a", n, n)).collect());
    say(&numbers[..300]);
    assert_eq!(dead_letter_all(&rig).len(), 300);
    say(&numbers[300..400]);
    assert_eq!(dead_letter_all(&rig).len(), 100);
    say(&numbers[400..]);
    rig.accepted(message("b", "1", "b"));
    let head = rig.lease(1).pop().unwrap();
    let of =
        Selection { conversation: Some(head.label.clone()), reason: Some(Reason::Invalid), ..Selection::default() };
    assert_eq!(rig.redrive_all(&of), 400);
    assert_eq!((rig.overview().queued, rig.overview().conversations), (701, 2));
    for at in [0, 1, 33, 399, 400, 500, 699] {
        let Found::State(MessageState { status: Status::Queued { ahead, .. }, .. }) =
            rig.find(asker("a"), &numbers[at])
        else {
            panic!("it is queued")
        };
        let expected = if at == 400 { 0 } else { at + usize::from(at < 400) };
        assert_eq!(ahead, expected as u64, "the head was in flight");
    }
    rig.settle(head, delivered());
    let rig = rig.killed();
    let mut sent = rig.drain();
    sent.retain(|text| text != "b");
    let mut expected = numbers.clone();
    expected.remove(400);
    assert_eq!(sent, expected);
}

#[test]
fn bulk_redrive_ends_when_the_queue_is_full() {
    let rig = Rig::with(|options| options.messages_max = 3);
    for number in 0..5 {
        rig.accepted(message("a", &number.to_string(), "x"));
        dead_letter_all(&rig);
    }
    let of = Selection::default();
    let sweep = rig.runtime.block_on(rig.queue.redrive_all(of.clone(), (Cursor::Dead(0), 100), false)).unwrap();
    let BulkProgress { done: 3, full: Some(Full::Messages { queued: 3, most: 3 }), next: Some(next), .. } = sweep
    else {
        panic!("{sweep:?}")
    };
    assert_eq!(rig.drain().len(), 3);
    let sweep = rig.runtime.block_on(rig.queue.redrive_all(of, (next, 100), false)).unwrap();
    assert_eq!(sweep, BulkProgress { done: 2, ..BulkProgress::default() });
}

#[test]
fn deleting_a_conversation_keeps_its_message_in_flight_and_other_conversations() {
    let rig = Rig::new();
    let elsewhere = |n: usize| Submission { caller: Caller::Uid(7), ..message("other", &n.to_string(), "x") };
    for part in 0..3 {
        rig.push_all((0..100).map(|n| in_conversation("k", message("a", &format!("{part}-{n}"), "x"))).collect());
        rig.push_all((0..10).map(|n| in_conversation("l", elsewhere(10 * part + n))).collect());
    }
    let head = rig.lease(1).pop().unwrap();
    assert_eq!(&*head.label, "k");
    assert_eq!(rig.delete_all("k"), (299, 1));
    assert_eq!(rig.delete_all("t:0123456789ab"), (0, 0));
    rig.settle(head, delivered());
    let Overview { queued, conversations, dead, .. } = rig.overview();
    assert_eq!((queued, conversations, dead), (30, 1, 299));
    assert_eq!(rig.drain().len(), 30);
}

#[test]
fn list_shows_queued_messages_in_order_and_then_dead_letters() {
    let rig = Rig::new();
    rig.accepted(message("a", "dead", "x"));
    dead_letter_all(&rig);
    rig.push_all((0..300).map(|n| message(&format!("t{}", n % 7), &n.to_string(), "secret")).collect());
    rig.accepted(in_conversation("k", message("b", "keyed", "x")));
    let names =
        |of: &Selection| -> Vec<String> { rig.list(of).iter().map(|seen| seen.client_token.to_string()).collect() };
    let mut expected: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    expected.push("keyed".into());
    let of = |state, reason, conversation: Option<&str>| Selection {
        state,
        reason,
        conversation: conversation.map(Into::into),
        ..Selection::default()
    };
    assert_eq!(names(&of(Some(StateFilter::Queued), None, None)), expected);
    expected.push("dead".into());
    assert_eq!(names(&Selection::default()), expected);
    assert_eq!(names(&of(None, Some(Reason::Invalid), None)), ["dead"]);
    assert_eq!(names(&of(None, Some(Reason::Expired), None)), Vec::<String>::new());
    assert_eq!(names(&of(None, None, Some("k"))), ["keyed"]);
    let label = crate::message::label(None, &token("t3"));
    assert_eq!(names(&of(None, None, Some(&label))).len(), 43);
    let listed = rig.list(&of(Some(StateFilter::Queued), None, None));
    assert!(listed.iter().all(|seen| seen.body.is_none() && seen.content_type.as_deref() == Some("text/plain")));
    assert_eq!(rig.seek(&listed[299].id.to_string()), Lookup::Here(listed[299].id));
    for never in ["", "x", "0-1", "0000002a-1", "-", &format!("{}9999", listed[0].id), &format!("+{}", listed[0].id)] {
        assert_eq!(rig.seek(never), Lookup::Never, "{never}");
    }
}

#[test]
fn bulk_acts_and_lists_select_by_acceptance_and_a_dry_run_changes_nothing() {
    let rig = Rig::new();
    let mut times = Vec::new();
    for number in 0..3 {
        rig.push_all((0..100).map(|n| message(&format!("t{n}"), &format!("{number}-{n}"), "x")).collect());
        times.push(rig.clock.now());
        rig.skip(Duration::from_secs(60));
    }
    let of = |after: Option<usize>, before: Option<usize>| Selection {
        accepted_after: after.map(|at| times[at]),
        accepted_before: before.map(|at| times[at] + Duration::from_millis(1)),
        ..Selection::default()
    };
    let sum = |act: &dyn Fn((Cursor, usize)) -> BulkProgress, start: Cursor| {
        let (mut done, mut in_flight, mut next) = (0, 0, Some(start));
        while let Some(after) = next {
            let page = act((after, 30));
            (done, in_flight, next) = (done + page.done, in_flight + page.in_flight, page.next);
        }
        (done, in_flight)
    };
    let delete = |of: Selection, dry_run| {
        sum(&|page| rig.runtime.block_on(rig.queue.delete_all(of.clone(), page, dry_run)).unwrap(), of.start())
    };
    let redrive = |of: Selection, dry_run| {
        let act = |page| rig.runtime.block_on(rig.queue.redrive_all(of.clone(), page, dry_run)).unwrap();
        sum(&act, Cursor::Dead(0))
    };
    assert_eq!(rig.list(&of(Some(0), None)).len(), 200);
    assert_eq!(rig.list(&of(None, Some(0))).len(), 100);
    assert_eq!(rig.list(&of(Some(0), Some(1))).len(), 100);
    assert_eq!(rig.list(&of(Some(1), Some(0))).len(), 0);
    let head = rig.lease(1).pop().unwrap();
    assert_eq!(delete(of(None, Some(0)), true), (99, 1));
    assert_eq!((rig.overview().queued, rig.overview().dead), (300, 0));
    assert_eq!(delete(of(None, Some(0)), false), (99, 1));
    assert_eq!((rig.overview().queued, rig.overview().dead), (201, 99));
    rig.settle(head, Disposition::DeadLetter(Reason::Invalid, ServiceError::default()));
    // Dead letters are selected in the same way, deleted ones only by their reason.
    assert_eq!(redrive(of(None, None), true), (1, 0));
    let deleted = |of| Selection { reason: Some(Reason::Deleted), ..of };
    assert_eq!(redrive(deleted(of(Some(0), None)), true), (0, 0));
    assert_eq!(redrive(deleted(of(None, Some(0))), true), (99, 0));
    assert_eq!(rig.overview().dead, 100);
    assert_eq!(redrive(deleted(of(None, Some(0))), false), (99, 0));
    assert_eq!((rig.overview().queued, rig.overview().dead), (299, 1));
    // With a reason a deletion is one of dead letters.
    let invalid = || Selection { reason: Some(Reason::Invalid), ..Selection::default() };
    assert_eq!((delete(invalid(), true), rig.list(&invalid()).len()), ((1, 0), 1));
    assert_eq!((delete(invalid(), false), rig.list(&invalid()).len()), ((1, 0), 0));
    assert_eq!(delete(deleted(Selection::default()), false), (0, 0), "it is deleted already");
    assert_eq!((rig.overview().queued, rig.overview().dead), (299, 1));
}

#[test]
fn summary_counts_every_message_by_age_and_reason_and_ranks_the_conversations() {
    let month = Duration::from_secs(30 * 24 * 3600);
    let rig = Rig::with(|options| (options.lifetime, options.dead_kept_for) = (month, month));
    let summary = || {
        let (mut steps, mut summary) = (0, Summary::default());
        while !summary.is_complete() {
            summary = rig.runtime.block_on(rig.queue.summarize(summary)).unwrap();
            steps += 1;
        }
        (summary, steps)
    };
    let (empty, _) = summary();
    assert_eq!((empty.queued, empty.dead, empty.most_queued.len(), empty.reasons.len()), ([0; 8], [0; 8], 0, 0));
    for n in 0..3 {
        rig.accepted(message(&format!("dead{n}"), "1", "x"));
    }
    assert_eq!(dead_letter_all(&rig).len(), 3);
    let first = rig.list(&Selection::default())[0].id;
    rig.delete(first).unwrap();
    // One old message, one long conversation, and many short ones, in three classes of age.
    rig.accepted(in_conversation("old", message("old", "1", "secret")));
    let oldest = rig.overview().oldest;
    rig.skip(Duration::from_secs(8 * 24 * 3600));
    for part in 0..10 {
        let long = |n| in_conversation("long", message("long", &format!("{part}-{n}"), "secret"));
        rig.push_all((0..500).map(long).collect());
    }
    rig.skip(Duration::from_secs(61));
    rig.push_all((0..600).map(|n| message(&format!("t{n}"), "1", "secret")).collect());
    rig.accepted(in_conversation("two", message("two", "1", "secret")));
    rig.accepted(in_conversation("two", message("two", "2", "secret")));
    let (all, steps) = summary();
    assert_eq!((all.queued, all.dead), ([602, 5000, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 3]));
    assert_eq!(all.reasons, [("deleted", 1), ("invalid", 2)].into());
    let of = |counts: &[ConversationCount]| -> Vec<(String, u64)> {
        counts.iter().map(|count| (count.conversation.to_string(), count.queued)).collect()
    };
    let most = of(&all.most_queued);
    assert_eq!(most.len(), 10);
    assert_eq!(most[..2], [("long".into(), 5000), ("two".into(), 2)]);
    assert_eq!(of(&all.longest_waiting)[..2], [("old".into(), 1), ("long".into(), 5000)]);
    assert_eq!(Some(all.longest_waiting[0].oldest), oldest);
    assert!(steps >= 4, "other requests run between {steps} steps");
}

#[test]
fn displayed_cursor_parses_to_itself() {
    for cursor in [Cursor::Dead(0), Cursor::Dead(u64::MAX), Cursor::Queued { pack: 12, nth: 255 }] {
        assert_eq!(Cursor::parse(&cursor.to_string()), Some(cursor));
    }
    for wrong in ["", "d", "q", "q1", "q1.", "q1.256", "x1", "d-1"] {
        assert_eq!(Cursor::parse(wrong), None, "{wrong}");
    }
}

//! The queue against a plain model of it in memory: random sequences of what bots, upstream, time and operators do.
//!
//! Eight times `PROPTEST_CASES` of them, 2,048 unless it is set; a failure prints the shortest sequence that shows it.

use std::collections::{BTreeMap, HashMap, HashSet};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;

/// Tokens: the first three speak for a conversation each, the last two for one that has a key.
const BEARERS: [&str; 5] = ["a", "b", "c", "k1", "k2"];
const CLIENT_TOKENS: u8 = 60;
const OUTCOMES_KEPT: u64 = 3600;
const DEAD_KEPT: u64 = 7000;
const LIFETIME: u64 = 900;
const TOKEN_WAIT: u64 = 120;
const REFUSED_FOR: u64 = 60;

#[derive(Clone, Debug)]
enum Step {
    /// One commit of these.
    Push(Vec<Push>),
    Lease,
    /// Settles the lease of that number, if there is one.
    Settle(usize, Answer),
    /// Seconds.
    Skip(u64),
    Pause,
    Resume,
    Reopen,
    Kill,
}

#[derive(Clone, Debug)]
struct Push {
    bearer: usize,
    client_token: u8,
    other_contents: bool,
    long: bool,
    lifetime: Option<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Answer {
    Deliver,
    Keep,
    Retry { unknown: bool },
    Deny,
    Bury,
}

fn push() -> impl Strategy<Value = Push> {
    let lifetime = prop_oneof![4 => Just(None), 1 => (5u64..2000).prop_map(Some)];
    (0..BEARERS.len(), 0..CLIENT_TOKENS, prop::bool::weighted(0.05), prop::bool::weighted(0.05), lifetime).prop_map(
        |(bearer, client_token, other_contents, long, lifetime)| Push {
            bearer,
            client_token,
            other_contents,
            long,
            lifetime,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let answer = prop_oneof![
        5 => Just(Answer::Deliver),
        1 => Just(Answer::Keep),
        2 => any::<bool>().prop_map(|unknown| Answer::Retry { unknown }),
        1 => Just(Answer::Deny),
        1 => Just(Answer::Bury),
    ];
    prop_oneof![
        4 => prop::collection::vec(push(), 1..6).prop_map(Step::Push),
        1 => prop::collection::vec(push(), 60..100).prop_map(Step::Push),
        4 => Just(Step::Lease),
        6 => (0usize..4, answer).prop_map(|(nth, answer)| Step::Settle(nth, answer)),
        2 => prop_oneof![3 => 1u64..100, 1 => 100u64..4000].prop_map(Step::Skip),
        1 => Just(Step::Reopen),
        1 => Just(Step::Kill),
        1 => Just(Step::Pause),
        3 => Just(Step::Resume),
    ]
}

/// One message as the model has it.
#[derive(Clone, Debug)]
struct Message {
    bearer: usize,
    client_token: u8,
    text: String,
    lifetime: u64,
    deadline: u64,
    attempts: u32,
    unknown: bool,
}

/// One that has left.
#[derive(Clone, Debug)]
struct Gone {
    sequence: u64,
    at: u64,
    /// Why it is dead, and the token that it died with; none where it was delivered.
    dead: Option<(Reason, usize)>,
    message: Message,
}

#[derive(Debug, Default)]
struct Conversation {
    /// By sequence number.
    line: Vec<(u64, Message)>,
    in_flight: bool,
    due: u64,
    /// The refused token, and until when a renewed one is waited for.
    hold: Option<(usize, u64)>,
    /// By ClientToken.
    gone: HashMap<u8, Gone>,
    /// The start in which the head became the head.
    boot: u32,
}

#[derive(Debug, Default)]
struct Model {
    now: u64,
    sequence: u64,
    boot: u32,
    unclean_boot: u32,
    conversations: BTreeMap<usize, Conversation>,
    refused: HashMap<usize, u64>,
    /// Refusals up to then are forgotten.
    forgiven: Option<u64>,
    paused: Option<By>,
    /// Something was delivered.
    proven: bool,
    /// Tokens refused while nothing was.
    denied: HashSet<usize>,
    /// Tokens that brought a message.
    used: HashSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Operator,
    Relay,
}

#[derive(Debug, PartialEq)]
enum Answered {
    New,
    /// The sequence number of the first.
    Repeat(u64),
    OtherContents,
    Refused,
}

fn conversation_of(bearer: usize) -> usize {
    bearer.min(3)
}

impl Model {
    fn push(&mut self, push: &Push) -> Answered {
        let refused = self.refused.get(&push.bearer).copied().filter(|at| Some(*at) > self.forgiven);
        let conversation = self.conversations.entry(conversation_of(push.bearer)).or_default();
        let text = text_of(push);
        if let Some((sequence, message)) = conversation.line.iter().find(|(_, m)| m.client_token == push.client_token) {
            return if message.text == text { Answered::Repeat(*sequence) } else { Answered::OtherContents };
        }
        if let Some(gone) = conversation.gone.get(&push.client_token) {
            let Gone { sequence, dead, mut message, .. } = gone.clone();
            if message.text != text {
                return Answered::OtherContents;
            }
            if let Some((Reason::ChatOver | Reason::TokenRefused, died_with)) = dead
                && died_with != push.bearer
                && refused.is_none()
            {
                conversation.gone.remove(&push.client_token);
                message.bearer = push.bearer;
                message.deadline = self.now + message.lifetime;
                let head = conversation.line.first();
                let doubtful = head.is_some_and(|(_, head)| head.unknown || conversation.boot <= self.unclean_boot);
                let first = usize::from(doubtful || conversation.in_flight);
                let at = conversation.line.partition_point(|(other, _)| *other < sequence).max(first);
                if conversation.line.is_empty() {
                    conversation.due = 0;
                }
                conversation.line.insert(at, (sequence, message));
                if at == 0 {
                    conversation.boot = self.boot;
                }
            }
            return Answered::Repeat(sequence);
        }
        if refused.is_some_and(|at| self.now - at < REFUSED_FOR) {
            return Answered::Refused;
        }
        self.used.insert(push.bearer);
        self.sequence += 1;
        if conversation.line.is_empty() {
            (conversation.due, conversation.boot) = (0, self.boot);
        }
        let lifetime = push.lifetime.unwrap_or(LIFETIME);
        let message = Message {
            bearer: push.bearer,
            client_token: push.client_token,
            text,
            lifetime,
            deadline: self.now + lifetime,
            attempts: 0,
            unknown: false,
        };
        conversation.line.push((self.sequence, message));
        Answered::New
    }

    /// Everything that can be sent now, by conversation.
    fn lease(&mut self) -> BTreeMap<usize, (u64, Message)> {
        let mut leased = BTreeMap::new();
        if self.paused.is_some() {
            return leased;
        }
        let now = self.now;
        for (&name, conversation) in &mut self.conversations {
            if conversation.in_flight || conversation.due > now {
                continue;
            }
            while let Some((sequence, head)) = conversation.line.first().cloned() {
                if head.deadline <= now {
                    conversation.bury(sequence, Reason::Expired, head.bearer, now, self.boot);
                } else if let Some((token, _)) = conversation.hold.filter(|(token, _)| *token == head.bearer) {
                    conversation.bury(sequence, Reason::ChatOver, token, now, self.boot);
                } else {
                    conversation.hold = None;
                    conversation.in_flight = true;
                    leased.insert(name, (sequence, head));
                    break;
                }
            }
        }
        leased
    }

    fn settle(&mut self, name: usize, answer: Answer) {
        let (now, boot) = (self.now, self.boot);
        let conversation = self.conversations.get_mut(&name).unwrap();
        conversation.in_flight = false;
        let (sequence, head) = conversation.line.first_mut().unwrap();
        let (sequence, bearer) = (*sequence, head.bearer);
        match answer {
            Answer::Deliver => {
                self.proven = true;
                let message = conversation.take(sequence, boot);
                conversation.gone.insert(message.client_token, Gone { sequence, at: now, dead: None, message });
            }
            Answer::Keep => {}
            Answer::Retry { unknown } => {
                head.attempts += 1;
                head.unknown |= unknown;
                conversation.due = now + 10;
            }
            Answer::Deny => {
                head.attempts += 1;
                self.refused.insert(bearer, now);
                conversation.hold = Some((bearer, now + TOKEN_WAIT));
                conversation.due = now + TOKEN_WAIT;
                if !self.proven {
                    self.denied.insert(bearer);
                    self.paused = self.paused.or((self.denied.len() >= 3).then_some(By::Relay));
                }
            }
            Answer::Bury => {
                head.attempts += 1;
                conversation.bury(sequence, Reason::Invalid, bearer, now, boot);
            }
        }
    }

    fn resume(&mut self) {
        for conversation in self.conversations.values_mut().filter(|conversation| conversation.hold.is_some()) {
            (conversation.hold, conversation.due) = (None, 0);
        }
        (self.paused, self.forgiven) = (None, Some(self.now));
        self.denied.clear();
    }

    fn tick(&mut self) {
        let (now, boot) = (self.now, self.boot);
        for conversation in self.conversations.values_mut() {
            let head = conversation.line.first().map(|(sequence, _)| *sequence).filter(|_| conversation.in_flight);
            let expired: Vec<(u64, usize)> = conversation
                .line
                .iter()
                .filter(|(sequence, message)| message.deadline <= now && Some(*sequence) != head)
                .map(|(sequence, message)| (*sequence, message.bearer))
                .collect();
            for (sequence, bearer) in expired {
                conversation.bury(sequence, Reason::Expired, bearer, now, boot);
            }
            conversation
                .gone
                .retain(|_, gone| now - gone.at < if gone.dead.is_none() { OUTCOMES_KEPT } else { DEAD_KEPT });
        }
    }

    fn reopen(&mut self, killed: bool) {
        if killed || self.conversations.values().any(|conversation| conversation.in_flight) {
            self.unclean_boot = self.boot;
        }
        self.boot += 1;
        self.conversations.values_mut().for_each(|conversation| conversation.in_flight = false);
        self.denied.clear();
        if self.paused == Some(By::Relay) {
            self.resume();
        }
        self.tick();
    }
}

impl Conversation {
    fn take(&mut self, sequence: u64, boot: u32) -> Message {
        let at = self.line.iter().position(|(other, _)| *other == sequence).unwrap();
        let (_, message) = self.line.remove(at);
        if self.line.is_empty() {
            (self.hold, self.due) = (None, 0);
        } else if at == 0 {
            self.boot = boot;
            if self.hold.is_none() {
                self.due = 0;
            }
        }
        message
    }

    fn bury(&mut self, sequence: u64, reason: Reason, token: usize, now: u64, boot: u32) {
        let message = self.take(sequence, boot);
        let dead = Some((reason, token));
        self.gone.insert(message.client_token, Gone { sequence, at: now, dead, message });
    }
}

fn text_of(push: &Push) -> String {
    let text = format!("{}{}", push.client_token, if push.other_contents { " other" } else { "" });
    if push.long { text.repeat(1 + 6000 / text.len()) } else { text }
}

fn submission(push: &Push) -> Submission {
    let bearer = BEARERS[push.bearer];
    let lifetime = push.lifetime.map(Duration::from_secs);
    let submission = Submission { lifetime, ..message(bearer, &push.client_token.to_string(), &text_of(push)) };
    if conversation_of(push.bearer) == 3 { in_conversation("k", submission) } else { submission }
}

/// The queue beside its model.
struct Pair {
    rig: Rig,
    model: Model,
    leases: BTreeMap<usize, Lease>,
}

impl Pair {
    fn new() -> Pair {
        // What matters here is what is done, not whether it is durable.
        let memory = std::path::Path::new("/dev/shm");
        let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let options = Options {
            dead_kept_for: Duration::from_secs(DEAD_KEPT),
            outcomes_kept_for: Duration::from_secs(OUTCOMES_KEPT),
            ..options(folder.path().join("queue"))
        };
        let rig = Rig::open(folder, options, Clock::still());
        Pair { rig, model: Model { boot: 1, ..Model::default() }, leases: BTreeMap::new() }
    }

    fn step(mut self, step: &Step) -> Result<Pair, TestCaseError> {
        match step {
            Step::Push(pushes) => {
                let verdicts = self.rig.push_all(pushes.iter().map(submission).collect());
                for (push, verdict) in pushes.iter().zip(verdicts) {
                    let answered = match verdict {
                        Verdict::Accepted { repeat: false, .. } => Answered::New,
                        Verdict::Accepted { repeat: true, state } => Answered::Repeat(state.id.sequence),
                        Verdict::Rejected(Rejection::OtherContents(_)) => Answered::OtherContents,
                        Verdict::Rejected(Rejection::TokenRefused(_)) => Answered::Refused,
                        Verdict::Rejected(other) => return Err(TestCaseError::fail(format!("{push:?}: {other:?}"))),
                    };
                    prop_assert_eq!(answered, self.model.push(push), "{:?}", push);
                }
            }
            Step::Lease => {
                let mut expected = self.model.lease();
                for lease in self.rig.lease(100) {
                    let label = BEARERS.iter().position(|bearer| lease.connection_token == token(bearer)).unwrap();
                    let name = conversation_of(label);
                    let Some((sequence, message)) = expected.remove(&name) else {
                        return Err(TestCaseError::fail(format!("{} was not to be sent", text(&lease))));
                    };
                    prop_assert_eq!((lease.id.sequence, text(&lease)), (sequence, message.text));
                    prop_assert_eq!(lease.attempts, message.attempts);
                    self.leases.insert(name, lease);
                }
                prop_assert!(expected.is_empty(), "{:?} were to be sent", expected);
            }
            Step::Settle(nth, answer) => {
                let Some(name) = self.leases.keys().nth(*nth).copied() else { return Ok(self) };
                let lease = self.leases.remove(&name).unwrap();
                let due = self.rig.clock.now() + Duration::from_secs(10);
                let disposition = match answer {
                    Answer::Deliver => delivered(),
                    Answer::Keep => Disposition::Keep,
                    Answer::Retry { unknown } => Disposition::Retry { due, unknown: *unknown, strike: false },
                    Answer::Deny => denied("Access denied"),
                    Answer::Bury => Disposition::Bury(Reason::Invalid, ServiceError::default()),
                };
                self.rig.settle(lease, disposition);
                self.model.settle(name, *answer);
            }
            Step::Skip(seconds) => {
                self.rig.skip(Duration::from_secs(*seconds));
                self.model.now += seconds;
                self.model.tick();
            }
            Step::Pause => {
                self.rig.pause("a test");
                self.model.paused = Some(By::Operator);
            }
            Step::Resume => {
                self.rig.resume();
                self.model.resume();
            }
            Step::Reopen => {
                self.leases.clear();
                self.rig = self.rig.reopen();
                self.model.reopen(false);
            }
            Step::Kill => {
                self.leases.clear();
                self.rig = self.rig.killed();
                self.model.reopen(true);
            }
        }
        Ok(self)
    }

    /// Everything that anybody can ask for is as the model has it.
    fn compare(&self) -> Result<(), TestCaseError> {
        let overview = self.rig.overview();
        let lines = || self.model.conversations.values();
        let count = |of: &dyn Fn(&Conversation) -> usize| lines().map(of).sum::<usize>() as u64;
        prop_assert_eq!(overview.queued, count(&|c| c.line.len()));
        prop_assert_eq!(overview.paused.is_some(), self.model.paused.is_some());
        prop_assert_eq!(overview.conversations, count(&|c| usize::from(!c.line.is_empty())));
        prop_assert_eq!(overview.held, count(&|c| usize::from(c.hold.is_some())));
        prop_assert_eq!(overview.unknown, count(&|c| c.line.iter().filter(|(_, m)| m.unknown).count()));
        prop_assert_eq!(overview.dead, count(&|c| c.gone.values().filter(|gone| gone.dead.is_some()).count()));
        for (bearer, name) in BEARERS.into_iter().enumerate() {
            let key = (conversation_of(bearer) == 3).then(|| ConversationKey::parse(b"k").unwrap());
            let known = self.model.conversations.get(&conversation_of(bearer));
            for client_token in 0..CLIENT_TOKENS {
                let queued = known.and_then(|c| c.line.iter().position(|(_, m)| m.client_token == client_token));
                let gone = known.and_then(|c| c.gone.get(&client_token));
                if queued.is_none() && gone.is_none() && client_token % 8 > 0 {
                    continue; // of what is not there some is enough
                }
                let asker = Asker { conversation: key.clone(), ..asker(name) };
                let found = self.rig.find(asker, &client_token.to_string());
                let as_modelled = match &found {
                    // A token that has not been used yet may ask of nothing.
                    Found::Unknown => queued.is_none() && gone.is_none() || !self.model.used.contains(&bearer),
                    Found::OtherConversation => false,
                    Found::State(state) => match (&state.status, queued, gone) {
                        (Status::Queued { ahead, .. }, Some(at), None) => {
                            let (sequence, message) = &known.unwrap().line[at];
                            (*ahead, state.id.sequence, state.attempts) == (at as u64, *sequence, message.attempts)
                        }
                        (Status::Delivered(_), None, Some(gone)) => gone.dead.is_none(),
                        (Status::Dead { reason, .. }, None, Some(gone)) => {
                            gone.dead.is_some_and(|(expected, _)| expected == *reason)
                        }
                        _ => false,
                    },
                };
                prop_assert!(as_modelled, "{} {client_token}: {found:?}, not {queued:?} {gone:?}", name);
            }
        }
        Ok(())
    }
}

/// As many runners at a time as hide that each mostly waits for its store.
const RUNNERS: u32 = 4;

#[test]
fn queue_does_as_its_model() {
    let default = ProptestConfig::default();
    let config = ProptestConfig { cases: 8 * default.cases / RUNNERS, failure_persistence: None, ..default };
    std::thread::scope(|scope| {
        for _ in 0..RUNNERS {
            scope.spawn(|| {
                let cases = (prop::collection::vec(step(), 1..40), any::<bool>());
                let run = TestRunner::new(config.clone()).run(&cases, |(steps, reopened)| {
                    let end = reopened.then_some(&Step::Reopen);
                    steps.iter().chain(end).try_fold(Pair::new(), Pair::step)?.compare()
                });
                run.unwrap_or_else(|fault| panic!("{fault}"));
            });
        }
    });
}

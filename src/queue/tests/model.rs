//! The queue against a plain model in memory: random sequences of actions of bots, Connect, time and operators.
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
    /// Redrives the message of that number, whatever became of it.
    Redrive(usize, With),
    RedriveAll(Option<Reason>),
    /// Deletes the message of that number, if it is kept.
    Delete(usize),
    /// Deletes what is queued under a bearer's label.
    DeleteAll(usize),
    Reopen,
    Kill,
}

impl Step {
    /// Replaces most deliveries by refusals: without a delivery, three refused tokens change how the queue sends.
    fn refuse(&mut self) {
        if let Step::Settle(nth, answer @ Answer::Deliver) = self
            && *nth < 3
        {
            *answer = Answer::Deny;
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum With {
    Nothing,
    /// Another token, if it was used before.
    Bearer(usize),
    OtherContents,
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
    let with = prop_oneof![
        2 => Just(With::Nothing),
        1 => (0..BEARERS.len()).prop_map(With::Bearer),
        1 => Just(With::OtherContents),
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
        3 => (any::<usize>(), with).prop_map(|(nth, with)| Step::Redrive(nth, with)),
        1 => prop::option::of(prop::sample::select(&Reason::ALL[..])).prop_map(Step::RedriveAll),
        2 => any::<usize>().prop_map(Step::Delete),
        1 => (0..BEARERS.len()).prop_map(Step::DeleteAll),
    ]
}

/// One message as the model has it.
#[derive(Clone, Debug)]
struct Message {
    bearer: usize,
    client_token: u8,
    /// The accepted text.
    text: String,
    /// The text that is sent.
    says: String,
    label: Box<str>,
    /// The token of the attempt whose answer was lost.
    sent_with: Option<usize>,
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
    /// The reason and the token of a dead letter; `None` if it was delivered.
    dead: Option<(Reason, usize)>,
    maybe_delivered: bool,
    /// It was redriven into another conversation.
    moved: bool,
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
            let Gone { sequence, dead, moved, mut message, .. } = gone.clone();
            if message.text != text {
                return Answered::OtherContents;
            }
            if let Some((Reason::ChatOver | Reason::TokenRefused, died_with)) = dead
                && died_with != push.bearer
                && refused.is_none()
                && !moved
            {
                conversation.gone.remove(&push.client_token);
                message.bearer = push.bearer;
                message.deadline = self.now + message.lifetime;
                conversation.insert(sequence, message, self.boot, self.unclean_boot);
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
            says: text.clone(),
            text,
            label: label(push.bearer),
            sent_with: None,
            lifetime,
            deadline: self.now + lifetime,
            attempts: 0,
            unknown: false,
        };
        conversation.line.push((self.sequence, message));
        Answered::New
    }

    /// Everything that can be sent now, by conversation, and with which token.
    fn lease(&mut self) -> BTreeMap<usize, (u64, Message, usize)> {
        let mut leased = BTreeMap::new();
        if self.paused.is_some() {
            return leased;
        }
        let now = self.now;
        let refused = |bearer: usize| self.refused.get(&bearer).is_some_and(|at| Some(*at) > self.forgiven);
        for (&name, conversation) in &mut self.conversations {
            if conversation.in_flight || conversation.due > now {
                continue;
            }
            while let Some((sequence, head)) = conversation.line.first().cloned() {
                let doubtful = conversation.is_doubtful(sequence, self.unclean_boot);
                if head.deadline <= now {
                    conversation.dead_letter(sequence, Reason::Expired, (head.bearer, doubtful), now, self.boot);
                } else if let Some((token, _)) = conversation.hold.filter(|(token, _)| *token == head.bearer) {
                    conversation.dead_letter(sequence, Reason::ChatOver, (token, doubtful), now, self.boot);
                } else {
                    conversation.hold = None;
                    conversation.in_flight = true;
                    let first = head.sent_with.filter(|first| doubtful && !refused(*first));
                    let token = first.unwrap_or(head.bearer);
                    leased.insert(name, (sequence, head, token));
                    break;
                }
            }
        }
        leased
    }

    fn settle(&mut self, name: usize, answer: Answer, token: usize) {
        let (now, boot) = (self.now, self.boot);
        let conversation = self.conversations.get_mut(&name).unwrap();
        conversation.in_flight = false;
        let (sequence, head) = conversation.line.first_mut().unwrap();
        let sequence = *sequence;
        match answer {
            Answer::Deliver => {
                self.proven = true;
                self.paused = self.paused.filter(|by| *by == By::Operator);
                let message = conversation.take(sequence, boot);
                let gone = Gone {
                    sequence,
                    at: now,
                    dead: None,
                    maybe_delivered: false,
                    moved: false,
                    message: message.clone(),
                };
                conversation.gone.insert(message.client_token, gone);
            }
            Answer::Keep => {}
            Answer::Retry { unknown } => {
                head.attempts += 1;
                if unknown {
                    (head.unknown, head.sent_with) = (true, Some(token));
                }
                conversation.due = now + 10;
            }
            Answer::Deny if token != head.bearer => {
                self.refused.insert(token, now);
                head.sent_with = None;
                conversation.due = 0;
            }
            Answer::Deny => {
                head.attempts += 1;
                self.refused.insert(token, now);
                conversation.hold = Some((token, now + TOKEN_WAIT));
                conversation.due = now + TOKEN_WAIT;
                if !self.proven {
                    self.denied.insert(token);
                    self.paused = self.paused.or((self.denied.len() >= 3).then_some(By::Relay));
                }
            }
            Answer::Bury => {
                head.attempts += 1;
                conversation.dead_letter(sequence, Reason::Invalid, (token, false), now, boot);
            }
        }
    }

    /// The queued, dead and delivered messages: conversation, ClientToken, number, and true for a dead letter.
    fn all(&self) -> Vec<(usize, u8, u64, bool)> {
        let mut all = Vec::new();
        for (name, conversation) in &self.conversations {
            let queued = conversation.line.iter();
            all.extend(queued.map(|(sequence, message)| (*name, message.client_token, *sequence, false)));
            let gone = conversation.gone.iter().filter(|(_, gone)| !gone.moved);
            all.extend(gone.map(|(key, gone)| (*name, *key, gone.sequence, gone.dead.is_some())));
        }
        all.sort_unstable_by_key(|(_, _, sequence, _)| *sequence);
        all
    }

    /// A dead letter is redriven; false where another message has its name.
    fn redrive(&mut self, name: usize, key: u8, with: With) -> bool {
        let conversation = self.conversations.get_mut(&name).unwrap();
        let gone = conversation.gone.remove(&key).unwrap();
        let mut message = gone.message.clone();
        (message.attempts, message.deadline) = (0, self.now + message.lifetime);
        let first = message.sent_with.unwrap_or(message.bearer);
        (message.unknown, message.sent_with) = (gone.maybe_delivered, gone.maybe_delivered.then_some(first));
        let mut to = name;
        match with {
            With::Nothing => {}
            With::OtherContents => {
                (message.unknown, message.sent_with) = (false, None);
                message.says = edited(&message.text);
            }
            With::Bearer(bearer) => {
                message.bearer = bearer;
                to = conversation_of(bearer);
            }
        }
        if to != name {
            let target = self.conversations.entry(to).or_default();
            let queued = target.line.iter().any(|(_, other)| other.client_token == key);
            let left = target.gone.get(&key).is_some_and(|other| other.sequence != gone.sequence);
            if queued || left {
                self.conversations.get_mut(&name).unwrap().gone.insert(key, gone);
                return false;
            }
            target.gone.remove(&key);
            (message.unknown, message.sent_with) = (false, None);
            let neighbour = target.line.first().filter(|_| to == 3).map(|(_, head)| head.label.clone());
            message.label = neighbour.unwrap_or_else(|| crate::message::label(None, &token(BEARERS[message.bearer])));
            let left = Gone { moved: true, at: self.now, ..gone.clone() };
            self.conversations.get_mut(&name).unwrap().gone.insert(key, left);
        }
        let bearer = message.bearer;
        let conversation = self.conversations.get_mut(&to).unwrap();
        conversation.insert(gone.sequence, message, self.boot, self.unclean_boot);
        self.refused.remove(&bearer);
        if conversation.hold.is_some_and(|(held, _)| held == bearer) {
            (conversation.hold, conversation.due) = (None, 0);
        }
        true
    }

    /// Something kept is deleted; false where it is in flight.
    fn delete(&mut self, name: usize, key: u8) -> bool {
        let conversation = self.conversations.get_mut(&name).unwrap();
        if let Some(gone) = conversation.gone.get_mut(&key) {
            gone.dead = gone.dead.map(|_| (Reason::Deleted, gone.message.bearer));
            return true;
        }
        let at = conversation.line.iter().position(|(_, message)| message.client_token == key).unwrap();
        if at == 0 && conversation.in_flight {
            return false;
        }
        let (sequence, bearer) = (conversation.line[at].0, conversation.line[at].1.bearer);
        let doubtful = conversation.is_doubtful(sequence, self.unclean_boot);
        conversation.dead_letter(sequence, Reason::Deleted, (bearer, doubtful), self.now, self.boot);
        true
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
                let doubtful = conversation.is_doubtful(sequence, self.unclean_boot);
                conversation.dead_letter(sequence, Reason::Expired, (bearer, doubtful), now, boot);
            }
            let kept_for = |gone: &Gone| if gone.dead.is_some() && !gone.moved { DEAD_KEPT } else { OUTCOMES_KEPT };
            conversation.gone.retain(|_, gone| now - gone.at < kept_for(gone));
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
    fn is_doubtful(&self, sequence: u64, unclean_boot: u32) -> bool {
        let mut messages = self.line.iter().enumerate();
        let found = messages.find(|(_, (other, _))| *other == sequence);
        found.is_some_and(|(at, (_, message))| message.unknown || (at == 0 && self.boot <= unclean_boot))
    }

    /// Puts a message that comes back at its old place.
    fn insert(&mut self, sequence: u64, message: Message, boot: u32, unclean_boot: u32) {
        let head = self.line.first().map(|(head, _)| *head);
        let doubtful = head.is_some_and(|head| self.is_doubtful(head, unclean_boot));
        // A message was put behind a doubtful head, which stays the first.
        let passed_over = !self.line.is_sorted_by_key(|(other, _)| *other);
        let first = usize::from(doubtful || self.in_flight || passed_over);
        let at = first + self.line[first..].partition_point(|(other, _)| *other < sequence);
        if self.line.is_empty() {
            self.due = 0;
        }
        self.line.insert(at, (sequence, message));
        if at == 0 {
            self.boot = boot;
        }
    }

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

    fn dead_letter(
        &mut self,
        sequence: u64,
        reason: Reason,
        (token, maybe_delivered): (usize, bool),
        now: u64,
        boot: u32,
    ) {
        let message = self.take(sequence, boot);
        let dead = Some((reason, token));
        let gone = Gone { sequence, at: now, dead, maybe_delivered, moved: false, message: message.clone() };
        self.gone.insert(message.client_token, gone);
    }
}

fn label(bearer: usize) -> Box<str> {
    if conversation_of(bearer) == 3 { "k".into() } else { crate::message::label(None, &token(BEARERS[bearer])) }
}

/// An operator's change of a text: a long one for a short one, and the other way round.
fn edited(text: &str) -> String {
    if text.len() > 1000 { "edited".into() } else { text.repeat(1 + 6000 / text.len()) }
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

fn bearer_of(lease: &Lease) -> usize {
    BEARERS.iter().position(|bearer| lease.connection_token == token(bearer)).unwrap()
}

/// The queue beside its model.
struct Pair {
    rig: Rig,
    model: Model,
    leases: BTreeMap<usize, Lease>,
    /// The store's part of each id.
    store: u32,
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
        Pair { rig, model: Model { boot: 1, ..Model::default() }, leases: BTreeMap::new(), store: 0 }
    }

    fn step(mut self, step: &Step) -> Result<Pair, TestCaseError> {
        match step {
            Step::Push(pushes) => {
                let verdicts = self.rig.push_all(pushes.iter().map(submission).collect());
                for (push, verdict) in pushes.iter().zip(verdicts) {
                    if let Verdict::Accepted { state, .. } = &verdict {
                        self.store = state.id.store;
                    }
                    let answered = match verdict {
                        Verdict::Accepted { repeat: false, .. } => Answered::New,
                        Verdict::Accepted { repeat: true, state, .. } => Answered::Repeat(state.id.sequence),
                        Verdict::Rejected(Rejection::OtherContents(_)) => Answered::OtherContents,
                        Verdict::Rejected(Rejection::TokenRefused(_)) => Answered::Refused,
                        Verdict::Rejected(other) => return Err(TestCaseError::fail(format!("{push:?}: {other:?}"))),
                    };
                    prop_assert_eq!(answered, self.model.push(push), "{:?}", push);
                }
            }
            // One message each `probe_max` is sent then: the tests of pauses have it.
            Step::Lease if self.model.paused == Some(By::Relay) => {}
            Step::Lease => {
                let mut expected = self.model.lease();
                for lease in self.rig.lease(100) {
                    let bearer = bearer_of(&lease);
                    let name = conversation_of(bearer);
                    let Some((sequence, message, token)) = expected.remove(&name) else {
                        return Err(TestCaseError::fail(format!("{} was not to be sent", text(&lease))));
                    };
                    prop_assert_eq!((lease.id.sequence, bearer, text(&lease)), (sequence, token, message.says));
                    prop_assert_eq!(lease.attempts, message.attempts);
                    self.leases.insert(name, lease);
                }
                prop_assert!(expected.is_empty(), "{:?} were to be sent", expected);
            }
            Step::Settle(nth, answer) => {
                let Some(name) = self.leases.keys().nth(*nth).copied() else { return Ok(self) };
                let lease = self.leases.remove(&name).unwrap();
                let bearer = bearer_of(&lease);
                let due = self.rig.clock.now() + Duration::from_secs(10);
                let disposition = match answer {
                    Answer::Deliver => delivered(),
                    Answer::Keep => Disposition::Keep,
                    Answer::Retry { unknown } => {
                        Disposition::Retry { due, answer_lost: *unknown, strike: false, counted: false }
                    }
                    Answer::Deny => denied("Access denied"),
                    Answer::Bury => Disposition::DeadLetter(Reason::Invalid, ServiceError::default()),
                };
                self.rig.settle(lease, disposition);
                self.model.settle(name, *answer, bearer);
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
            Step::Redrive(nth, with) => {
                let all = self.model.all();
                let Some(&(name, key, sequence, dead)) = all.get(nth % all.len().max(1)) else { return Ok(self) };
                // A message with other contents has a ClientToken of its own elsewhere, which the model does not have.
                let gone = self.model.conversations[&name].gone.get(&key);
                let is_edited = gone.is_some_and(|gone| gone.message.says != gone.message.text);
                let with = match with {
                    With::Bearer(bearer) if is_edited || !self.model.used.contains(bearer) => With::Nothing,
                    with => *with,
                };
                let Some(id) = self.kept(sequence, name, key)? else { return Ok(self) };
                let redrive = match with {
                    With::Nothing => Redrive::default(),
                    With::Bearer(bearer) => Redrive { token: Some(token(BEARERS[bearer])), body: None },
                    With::OtherContents => {
                        let gone = self.model.conversations[&name].gone.get(&key);
                        let says = edited(gone.map_or("x", |gone| &gone.message.text));
                        Redrive { token: None, body: Some(message("x", "x", &says).body) }
                    }
                };
                let expected = match dead {
                    false => Err(ActionError::Queued),
                    true if self.model.redrive(name, key, with) => Ok(()),
                    true => Err(ActionError::Taken),
                };
                prop_assert_eq!(self.rig.redrive(id, redrive), expected);
            }
            Step::RedriveAll(reason) => {
                let mut done = 0;
                for (name, key, _, dead) in self.model.all() {
                    let Some((died_of, _)) = self.model.conversations[&name].gone.get(&key).and_then(|gone| gone.dead)
                    else {
                        continue;
                    };
                    if dead && reason.map_or(died_of != Reason::Deleted, |reason| died_of == reason) {
                        done += u64::from(self.model.redrive(name, key, With::Nothing));
                    }
                }
                let of = Selection { reason: *reason, ..Selection::default() };
                prop_assert_eq!(self.rig.redrive_all(&of), done);
            }
            Step::Delete(nth) => {
                let all = self.model.all();
                let Some(&(name, key, sequence, _)) = all.get(nth % all.len().max(1)) else { return Ok(self) };
                if let Some(id) = self.kept(sequence, name, key)? {
                    let expected = if self.model.delete(name, key) { Ok(()) } else { Err(ActionError::InFlight) };
                    prop_assert_eq!(self.rig.delete(id), expected);
                }
            }
            Step::DeleteAll(bearer) => {
                let label = label(*bearer);
                let mut expected = (0, 0);
                for (name, key, _, _) in self.model.all() {
                    let mut line = self.model.conversations[&name].line.iter();
                    if line.any(|(_, message)| message.client_token == key && message.label == label) {
                        let deleted = self.model.delete(name, key);
                        expected = (expected.0 + u64::from(deleted), expected.1 + u64::from(!deleted));
                    }
                }
                prop_assert_eq!(self.rig.delete_all(&label), expected);
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

    /// The id of a queued or dead message; `None` if it was delivered.
    fn kept(&self, sequence: u64, name: usize, key: u8) -> Result<Option<MessageId>, TestCaseError> {
        let delivered = self.model.conversations[&name].gone.get(&key).is_some_and(|gone| gone.dead.is_none());
        match self.rig.seek(&format!("{:08x}-{sequence}", self.store)) {
            Lookup::Here(id) => Ok(Some(id)),
            sought => {
                prop_assert!(sought == Lookup::Gone && delivered, "{sequence}: {sought:?}");
                Ok(None)
            }
        }
    }

    /// Everything that anybody can ask for is as the model has it.
    fn compare(&self) -> Result<(), TestCaseError> {
        let overview = self.rig.overview();
        let lines = || self.model.conversations.values();
        let count = |of: &dyn Fn(&Conversation) -> usize| lines().map(of).sum::<usize>() as u64;
        prop_assert_eq!(overview.queued, count(&|c| c.line.len()));
        prop_assert_eq!(overview.paused.is_some(), self.model.paused == Some(By::Operator));
        prop_assert_eq!(overview.all_refused.is_some(), self.model.paused == Some(By::Relay));
        prop_assert_eq!(overview.conversations, count(&|c| usize::from(!c.line.is_empty())));
        prop_assert_eq!(overview.held, count(&|c| usize::from(c.hold.is_some())));
        prop_assert_eq!(overview.answer_lost, count(&|c| c.line.iter().filter(|(_, m)| m.unknown).count()));
        let dead = |gone: &&Gone| gone.dead.is_some() && !gone.moved;
        prop_assert_eq!(overview.dead, count(&|c| c.gone.values().filter(dead).count()));
        let mut kept: Vec<u64> = self.rig.list(&Selection::default()).iter().map(|seen| seen.id.sequence).collect();
        kept.sort_unstable();
        let mut expected: Vec<u64> = Vec::new();
        for conversation in lines() {
            expected.extend(conversation.line.iter().map(|(sequence, _)| *sequence));
            expected.extend(conversation.gone.values().filter(dead).map(|gone| gone.sequence));
        }
        expected.sort_unstable();
        prop_assert_eq!(kept, expected);
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
                        (Status::Dead { reason, maybe_delivered, .. }, None, Some(gone)) => {
                            let expected = gone.dead.map(|(reason, _)| (reason, gone.maybe_delivered));
                            expected == Some((*reason, *maybe_delivered))
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
fn queue_equals_its_model() {
    let default = ProptestConfig::default();
    let config = ProptestConfig { cases: 8 * default.cases / RUNNERS, failure_persistence: None, ..default };
    std::thread::scope(|scope| {
        for _ in 0..RUNNERS {
            scope.spawn(|| {
                let cases = (prop::collection::vec(step(), 1..40), any::<bool>(), prop::bool::weighted(0.2));
                let run = TestRunner::new(config.clone()).run(&cases, |(mut steps, reopened, refuses)| {
                    if refuses {
                        steps.iter_mut().for_each(Step::refuse);
                    }
                    let end = reopened.then_some(&Step::Reopen);
                    steps.iter().chain(end).try_fold(Pair::new(), Pair::step)?.compare()
                });
                run.unwrap_or_else(|fault| panic!("{fault}"));
            });
        }
    });
}

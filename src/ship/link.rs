//! The two ends between the thread that commits and the task that ships.
//!
//! The thread sends a ticket for each commit before it syncs its disk, and then waits for the report that the stream has
//! it, at most `ack_timeout`. From a wait in vain on, it is *behind*: it sends tickets and waits for none, until all are
//! stored. After a gap, which every start is, it is behind until a snapshot is complete.
//!
//! | [`State`] | a commit is in the stream | the thread waits |
//! | --- | --- | --- |
//! | `Up` | yes, with all before it | yes |
//! | `Behind` | not yet, or something before it is not | no |
//! | `Fenced` | never | no |

use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::{mpsc as tasks, watch};
use tracing::{error, info, warn};

use super::ownership::Ownership;
use super::{Item, Report, Ticket};
use crate::storage::{CommitPos, Key};
use crate::time::{Timestamp, millis};

/// The size of a part of a snapshot: commits wait for it.
const PART_BYTES: usize = 256 << 10;
/// The bytes of commits since the last snapshot, besides twice the live ones, after which the next one begins.
const SNAPSHOT_BYTES: u64 = if cfg!(test) { 64 << 10 } else { 8 << 20 };
/// The first and the longest pause between two looks for a report of a snapshot's part.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(100)];

/// The state of the copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// The stream lacks commits.
    #[default]
    Behind,
    /// The stream has every commit.
    Up,
    /// Another relay has the stream.
    Fenced,
}

/// The end of the task.
#[derive(Debug)]
pub struct TaskEnd {
    /// The tickets; the channel ends with the thread.
    pub tickets: tasks::UnboundedReceiver<Ticket>,
    /// The reports.
    pub reports: mpsc::Sender<Report>,
    /// The state.
    pub state: watch::Receiver<State>,
    /// Read by the sender.
    pub ownership: Arc<Ownership>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Tickets are not wanted.
    Lost,
    /// The next ticket begins a snapshot.
    Ready,
    /// Commits are shipped.
    Shipping,
    Fenced,
}

/// The next ticket of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// None.
    Nothing,
    /// The beginning.
    Begin,
    /// The rows after this key, about this many bytes of them.
    Rows(Key, usize),
}

/// The end of the thread.
#[derive(Debug)]
pub struct Link {
    tickets: tasks::UnboundedSender<Ticket>,
    reports: mpsc::Receiver<Report>,
    state: watch::Sender<State>,
    /// The time for the stream to take a commit.
    pub ack_timeout: Duration,
    /// Read by the sender.
    pub ownership: Arc<Ownership>,
    /// The position of the last commit of the store.
    pub at: CommitPos,
    mode: Mode,
    /// The last tickets: sent, stored.
    sent: u64,
    stored: u64,
    /// The last key of the snapshot under way.
    after: Option<Key>,
    /// The ticket that ends the last snapshot, and the one that ended it before the last gap.
    end: Option<u64>,
    /// True if every commit since the claim was shipped, and its snapshot is complete.
    complete: bool,
    /// True if a wait was in vain, and tickets are still not stored.
    late: bool,
    connected: bool,
    /// True if a new snapshot is to begin although nothing is missing.
    renew: bool,
    /// The bytes of rows since the last snapshot began, and those of the snapshot.
    since_begin: u64,
    snapshot: u64,
    pause: Duration,
    /// The commits that were not in the stream when they were answered, and the time since which.
    pub behind: (u64, Option<Timestamp>),
    warned: bool,
}

/// Makes both ends.
#[must_use]
pub fn link(ack_timeout: Duration) -> (Link, TaskEnd) {
    let (tickets, of_thread) = tasks::unbounded_channel();
    let (reports, of_task) = mpsc::channel();
    let state = watch::Sender::new(State::Behind);
    let ownership = Arc::<Ownership>::default();
    let task = TaskEnd { tickets: of_thread, reports, state: state.subscribe(), ownership: Arc::clone(&ownership) };
    let link = Link {
        tickets,
        reports: of_task,
        state,
        ack_timeout,
        ownership,
        at: CommitPos::default(),
        mode: Mode::Lost,
        sent: 0,
        stored: 0,
        after: None,
        end: None,
        complete: false,
        late: false,
        connected: false,
        renew: false,
        since_begin: 0,
        snapshot: 0,
        pause: PAUSES[0],
        behind: (0, None),
        warned: false,
    };
    (link, task)
}

impl Link {
    /// The state, for others.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Returns true if another relay has the stream.
    #[must_use]
    pub fn is_fenced(&self) -> bool {
        self.mode == Mode::Fenced
    }

    /// Sends the rows of a commit.
    pub fn commit(&mut self, rows: &[u8], queued: u64) {
        if self.mode == Mode::Shipping {
            self.since_begin += rows.len() as u64;
            self.send(Item::Rows(rows.to_vec()), queued);
        }
    }

    /// Waits until the stream has the last commit, if it has all before it.
    pub fn wait(&mut self, began: Timestamp, now: impl Fn() -> Timestamp) {
        self.look();
        while *self.state.borrow() == State::Up && self.stored < self.sent {
            match self.reports.recv_timeout(self.ack_timeout) {
                Ok(report) => self.take(report),
                Err(_) => {
                    self.late = true;
                    self.set_state();
                }
            }
        }
        if *self.state.borrow() == State::Behind {
            self.behind.0 += 1;
            // A connection that comes back does not make it `Up` before the commit is stored.
            self.late |= self.stored < self.sent;
        }
        self.note(began, now());
    }

    /// Takes the reports that have come, and notes the state. `began` is the time since which it would be behind.
    pub fn note(&mut self, began: Timestamp, now: Timestamp) {
        self.look();
        let state = *self.state.borrow();
        match state {
            State::Up => {
                if let (commits, Some(since)) = self.behind
                    && self.warned
                {
                    let seconds = now.since(since).as_secs_f64();
                    info!(commits, seconds, "fleet caught up");
                }
                (self.behind, self.warned) = ((0, None), false);
            }
            State::Behind => {
                let since = *self.behind.1.get_or_insert(began);
                if !self.warned && now.since(since) >= self.ack_timeout {
                    self.warned = true;
                    warn!(
                        waited_ms = millis(now.since(since)),
                        consequence = "commits are on this volume alone until the stream takes them again",
                        "fleet behind"
                    );
                }
            }
            State::Fenced => {}
        }
    }

    /// Begins the next snapshot if the stream has become long; `live` is the size of the store's rows.
    pub fn refresh(&mut self, live: u64) {
        if *self.state.borrow() == State::Up
            && self.after.is_none()
            && self.since_begin > SNAPSHOT_BYTES + 2 * live.max(self.snapshot)
        {
            self.renew = true;
        }
    }

    /// The next ticket of a snapshot; nothing while two tickets are not stored. One of them waits, so that the stream gets it
    /// as soon as it has stored the other.
    pub fn wanted(&mut self) -> Wanted {
        self.look();
        match (self.mode, self.after) {
            (Mode::Ready, _) => Wanted::Begin,
            (Mode::Shipping, None) if self.renew => Wanted::Begin,
            (Mode::Shipping, Some(after)) if self.sent - self.stored <= 1 => Wanted::Rows(after, PART_BYTES),
            _ => Wanted::Nothing,
        }
    }

    /// The time after which the snapshot under way needs a step; `None` if there is none.
    pub fn pause(&mut self) -> Option<Duration> {
        if self.wanted() != Wanted::Nothing {
            self.pause = PAUSES[0];
            return Some(Duration::ZERO);
        }
        let under_way = self.after.is_some() || self.end.is_some();
        let waits = self.mode == Mode::Shipping && under_way && self.stored < self.sent;
        waits.then(|| {
            self.pause = (self.pause * 2).min(PAUSES[1]);
            self.pause
        })
    }

    /// Begins a snapshot.
    pub fn begin(&mut self, stamp: String, queued: u64) {
        let continues = self.complete;
        (self.mode, self.after, self.end) = (Mode::Shipping, Some(Key::FIRST), None);
        (self.since_begin, self.snapshot, self.renew) = (0, 0, false);
        self.send(Item::Begin { stamp, continues }, queued);
    }

    /// Sends a part of the snapshot, which ends with the row `last`; `None` if it is complete.
    pub fn rows(&mut self, rows: Vec<u8>, last: Option<Key>, queued: u64) {
        self.snapshot += rows.len() as u64;
        self.since_begin += rows.len() as u64;
        self.after = last;
        self.send(Item::Rows(rows), queued);
        if last.is_none() {
            self.send(Item::End, queued);
            self.end = Some(self.sent);
        }
    }

    /// Sends the end of a stop, if the stream has every commit.
    pub fn release(&mut self, queued: u64) {
        if *self.state.borrow() == State::Up {
            self.send(Item::Released, queued);
        }
    }

    fn send(&mut self, item: Item, queued: u64) {
        self.sent += 1;
        if self.tickets.send(Ticket { number: self.sent, queued, at: self.at, item }).is_err() {
            // The task is gone: no report comes any more.
            self.take(Report::Connected(false));
        }
    }

    fn look(&mut self) {
        while let Ok(report) = self.reports.try_recv() {
            self.take(report);
        }
    }

    fn take(&mut self, report: Report) {
        match report {
            Report::Connected(connected) => self.connected = connected,
            Report::Stored(number) => {
                self.stored = number;
                if self.end.is_some_and(|end| end <= number) {
                    (self.complete, self.end) = (true, None);
                }
            }
            Report::Dropped => {
                self.mode = Mode::Lost;
                (self.complete, self.renew, self.after, self.end) = (false, false, None, None);
            }
            Report::Ready => (self.mode, self.stored) = (Mode::Ready, self.sent),
            Report::Fenced(node) => {
                self.mode = Mode::Fenced;
                error!(
                    successor = node,
                    consequence = "another relay continues this queue; this one stops, and its volume stays as it is",
                    "fenced"
                );
            }
        }
        self.late &= self.stored < self.sent;
        self.set_state();
    }

    fn set_state(&mut self) {
        let state = match self.mode {
            Mode::Fenced => State::Fenced,
            Mode::Shipping if self.complete && self.connected && !self.late => State::Up,
            _ => State::Behind,
        };
        self.state.send_if_modified(|current| std::mem::replace(current, state) != state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(20);

    /// A link that is up, with the number of its last ticket.
    fn up() -> (Link, TaskEnd, u64) {
        let (mut link, mut task) = link(TIMEOUT);
        link.commit(b"not wanted yet", 0);
        assert!(task.tickets.try_recv().is_err());
        task.reports.send(Report::Connected(true)).unwrap();
        task.reports.send(Report::Ready).unwrap();
        assert_eq!(link.wanted(), Wanted::Begin);
        link.begin("stamp".into(), 0);
        assert_eq!(link.wanted(), Wanted::Rows(Key::FIRST, PART_BYTES));
        let first = Key::new(b'a');
        link.rows(vec![1], Some(first), 0);
        assert_eq!(link.wanted(), Wanted::Nothing, "the beginning is not stored, and a part waits");
        task.reports.send(Report::Stored(1)).unwrap();
        assert_eq!(link.wanted(), Wanted::Rows(first, PART_BYTES));
        link.rows(vec![1], None, 0);
        task.reports.send(Report::Stored(3)).unwrap();
        assert_eq!(state(&mut link), State::Behind, "the end is not stored");
        task.reports.send(Report::Stored(4)).unwrap();
        assert_eq!(state(&mut link), State::Up);
        assert_eq!(link.pause(), None);
        while task.tickets.try_recv().is_ok() {}
        (link, task, 4)
    }

    fn state(link: &mut Link) -> State {
        link.note(Timestamp(0), Timestamp(0));
        *link.state.borrow()
    }

    fn wait(link: &mut Link) -> State {
        link.wait(Timestamp(1), || Timestamp(1));
        *link.state.borrow()
    }

    #[test]
    fn commit_waits_for_its_report_and_is_local_after_the_timeout_until_all_is_stored() {
        let (mut link, mut task, last) = up();
        link.commit(b"one", 5);
        task.reports.send(Report::Stored(last + 1)).unwrap();
        assert_eq!(wait(&mut link), State::Up);
        let sent = task.tickets.try_recv().unwrap();
        assert_eq!((sent.number, sent.queued, sent.item), (last + 1, 5, Item::Rows(b"one".to_vec())));
        link.commit(b"two", 0);
        assert_eq!(wait(&mut link), State::Behind, "no report came");
        link.commit(b"three", 0);
        assert_eq!((wait(&mut link), link.behind.0), (State::Behind, 2));
        task.reports.send(Report::Stored(last + 2)).unwrap();
        assert_eq!(state(&mut link), State::Behind, "one is missing");
        task.reports.send(Report::Stored(last + 3)).unwrap();
        assert_eq!((state(&mut link), link.behind), (State::Up, (0, None)));
    }

    #[test]
    fn lost_connection_is_behind_at_once_and_a_short_one_needs_no_snapshot() {
        let (mut link, task, last) = up();
        task.reports.send(Report::Connected(false)).unwrap();
        link.commit(b"one", 0);
        assert_eq!(wait(&mut link), State::Behind);
        task.reports.send(Report::Connected(true)).unwrap();
        assert_eq!(state(&mut link), State::Behind, "the commit is not stored");
        task.reports.send(Report::Stored(last + 1)).unwrap();
        assert_eq!((state(&mut link), link.wanted()), (State::Up, Wanted::Nothing));
    }

    #[test]
    fn commit_does_not_wait_for_a_task_that_is_gone() {
        let (mut link, task, _) = up();
        link.ack_timeout = Duration::from_secs(3600);
        drop(task);
        link.commit(b"one", 0);
        assert_eq!(wait(&mut link), State::Behind);
    }

    #[test]
    fn dropped_tickets_need_a_snapshot_and_the_stream_has_everything_only_after_its_end() {
        let (mut link, task, last) = up();
        task.reports.send(Report::Dropped).unwrap();
        link.commit(b"one", 0);
        assert_eq!(wait(&mut link), State::Behind);
        task.reports.send(Report::Ready).unwrap();
        assert_eq!(link.wanted(), Wanted::Begin);
        link.begin("stamp".into(), 0);
        let begin = link.sent;
        assert!(begin > last);
        task.reports.send(Report::Stored(begin)).unwrap();
        link.commit(b"two", 0);
        task.reports.send(Report::Stored(begin + 1)).unwrap();
        assert_eq!(wait(&mut link), State::Behind, "the snapshot is not complete");
        link.rows(vec![1], None, 0);
        task.reports.send(Report::Stored(begin + 3)).unwrap();
        assert_eq!(state(&mut link), State::Up);
    }

    #[test]
    fn long_stream_is_renewed_while_commits_go_on() {
        let (mut link, task, _) = up();
        link.refresh(0);
        assert_eq!(link.wanted(), Wanted::Nothing);
        while link.since_begin <= SNAPSHOT_BYTES + 2 * link.snapshot {
            link.commit(&[0; 4096], 0);
            task.reports.send(Report::Stored(link.sent)).unwrap();
            assert_eq!(wait(&mut link), State::Up);
        }
        link.refresh(SNAPSHOT_BYTES);
        assert_eq!(link.wanted(), Wanted::Nothing, "the queue itself is long");
        link.refresh(0);
        assert_eq!(link.wanted(), Wanted::Begin);
        link.begin("stamp".into(), 0);
        assert_eq!(link.since_begin, 0);
        task.reports.send(Report::Stored(link.sent)).unwrap();
        link.commit(b"one", 0);
        task.reports.send(Report::Stored(link.sent)).unwrap();
        assert_eq!(wait(&mut link), State::Up, "nothing is missing meanwhile");
    }

    #[test]
    fn fenced_relay_ships_nothing_more() {
        let (mut link, mut task, _) = up();
        task.reports.send(Report::Fenced("node-b".into())).unwrap();
        link.commit(b"one", 0);
        assert_eq!(wait(&mut link), State::Fenced);
        assert!(link.is_fenced());
        link.commit(b"two", 0);
        link.release(0);
        let sent: Vec<_> = std::iter::from_fn(|| task.tickets.try_recv().ok()).collect();
        assert_eq!(sent.len(), 1, "only the one before the report: {sent:?}");
        assert_eq!(link.wanted(), Wanted::Nothing);
    }
}

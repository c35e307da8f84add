//! The figures of a record.

use crate::world::{Fate, Line, Millis, Record, Upstream};

/// A second, in milliseconds.
pub const SECOND: Millis = 1000;

/// The requests of some clients between two moments.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The run.
    pub record: &'a Record,
    /// The clients are those below this.
    pub clients: usize,
    /// From this second.
    pub from: u64,
    /// Up to this second.
    pub to: u64,
}

impl<'a> Slice<'a> {
    /// Its lines.
    pub fn lines(self) -> impl Iterator<Item = &'a Line> {
        let time = self.from * SECOND..self.to * SECOND;
        self.record.lines.iter().filter(move |line| line.client < self.clients && time.contains(&line.at))
    }

    fn count(self, fate: Fate) -> f64 {
        self.lines().filter(|line| line.fate == fate).count() as f64
    }

    /// The accepted requests, as a share of the quota in the long run.
    pub fn goodput(self, upstream: &Upstream) -> f64 {
        self.count(Fate::Accepted) / upstream.allows(self.from * SECOND, self.to * SECOND)
    }

    /// Throttled requests ÷ requests.
    pub fn throttled(self) -> f64 {
        let throttled = self.count(Fate::Throttled);
        throttled / (throttled + self.count(Fate::Accepted)).max(1.0)
    }

    /// Jain's index of what each client got accepted: 1 where all got the same, 1 ÷ clients where one got all.
    pub fn fairness(self) -> f64 {
        let mut got = vec![0.0; self.clients];
        for line in self.lines().filter(|line| line.fate == Fate::Accepted) {
            got[line.client] += 1.0;
        }
        let squares: f64 = got.iter().map(|one| one * one).sum();
        got.iter().sum::<f64>().powi(2) / (self.clients as f64 * squares.max(1.0))
    }

    /// The least goodput of any ten seconds in it.
    pub fn least(self, upstream: &Upstream) -> f64 {
        let windows = (self.from..=self.to - 10).map(|from| Slice { from, to: from + 10, ..self }.goodput(upstream));
        windows.fold(f64::INFINITY, f64::min)
    }

    /// After how many seconds the first ten seconds end in which that much of the quota was used; `None` if never.
    pub fn reaches(self, share: f64, upstream: &Upstream) -> Option<u64> {
        let windows = self.from + 10..=self.to;
        windows
            .map(|to| Slice { from: to - 10, to, ..self })
            .find(|window| window.goodput(upstream) >= share)
            .map(|window| window.to - self.from)
    }
}

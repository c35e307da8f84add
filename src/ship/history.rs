//! The comparison of two copies of a store: the one on a volume, and the one in a stream.
//!
//! A [`Copy`](struct@Copy) is a list of runs and the position of its last commit. The commits of a run that both copies have are the
//! same ones, because one process made them in one order. From the first run that is not in both, or the first commit of
//! a run that one of them lacks, the copies differ.
//!
//! | [`Relation`] of the volume to the stream | example | the newer queue |
//! | --- | --- | --- |
//! | `Complete` | the relay restarts, also after an outage of the servers | the volume's |
//! | `Contained` | the volume is put back from a backup; a power cut lost the commit in flight | the stream's |
//! | `Forked` | the same, and a relay ran on the volume while no server answered; a successor | the stream's, and the volume's messages from a number on |
//! | `Unrelated` | the volume was used before its relay had a copy | the stream's, and the volume's messages |

use crate::storage::{CommitPos, Run};

/// A copy of a store.
#[derive(Clone, Copy, Debug)]
pub struct Copy<'a> {
    /// The runs whose commits it has, the newest one last.
    pub runs: &'a [Run],
    /// The position of its last commit.
    pub at: CommitPos,
}

/// The relation of the volume to the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The volume has every commit of the stream.
    Complete,
    /// The volume lacks commits of the stream, and the stream has every commit of the volume.
    Contained,
    /// Each has commits that the other lacks. Messages from this sequence number on are different ones.
    Forked(u64),
    /// They have no run in common.
    Unrelated,
}

impl Copy<'_> {
    /// The relation of this copy, the volume's, to that of the stream.
    #[must_use]
    pub fn relation(self, stream: Copy<'_>) -> Relation {
        let common = self.runs.iter().enumerate().rev().find_map(|(own, run)| {
            let other = stream.runs.iter().rposition(|other| other.instance == run.instance)?;
            Some((own, other))
        });
        let Some((own, other)) = common else { return Relation::Unrelated };
        let shared = self.end(own).min(stream.end(other));
        match (self.at > shared, stream.at > shared) {
            (_, false) => Relation::Complete,
            (false, true) => Relation::Contained,
            (true, true) => {
                // At least one of them goes on with another run there.
                let next = [self.runs.get(own + 1), stream.runs.get(other + 1)].into_iter().flatten();
                let sequences = next.filter(|run| run.after == shared).map(|run| run.sequence);
                Relation::Forked(sequences.min().unwrap_or(u64::MAX))
            }
        }
    }

    /// The last commit of a run.
    fn end(self, run: usize) -> CommitPos {
        self.runs.get(run + 1).map_or(self.at, |next| next.after)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(number: u64) -> CommitPos {
        CommitPos { epoch: 2, number }
    }

    fn run(instance: u64, after: u64, sequence: u64) -> Run {
        Run { instance, after: at(after), sequence }
    }

    #[test]
    fn relation_of_a_volume_to_the_stream() {
        let (a, b, c) = (run(1, 0, 1), run(2, 10, 100), run(3, 20, 200));
        let local = run(9, 8, 80);
        let relation = |own: &[Run], last: u64, stream: &[Run], stored: u64| {
            Copy { runs: own, at: at(last) }.relation(Copy { runs: stream, at: at(stored) })
        };
        for (own, last, stream, stored, expected) in [
            (&[a][..], 7, &[a][..], 7, Relation::Complete),
            (&[a], 9, &[a], 7, Relation::Complete),
            (&[a], 6, &[a], 7, Relation::Contained),
            // Restarts.
            (&[a, b], 10, &[a], 10, Relation::Complete),
            (&[a, b], 15, &[a], 7, Relation::Complete),
            // A commit that was sent and never synced, before the next run.
            (&[a, b], 10, &[a], 11, Relation::Contained),
            (&[a, b], 12, &[a], 11, Relation::Forked(100)),
            // A backup of an older run.
            (&[a], 7, &[a, b], 15, Relation::Contained),
            (&[a], 7, &[a, b, c], 25, Relation::Contained),
            (&[a, b], 12, &[a, b, c], 25, Relation::Contained),
            // The same, after a run without servers, which went on beyond the stream or not.
            (&[a, local], 9, &[a, b, c], 25, Relation::Forked(80)),
            (&[a, local], 90, &[a, b, c], 25, Relation::Forked(80)),
            (&[a, local], 90, &[a], 9, Relation::Forked(80)),
            (&[a, local], 8, &[a, b, c], 25, Relation::Contained),
            (&[a, local], 90, &[a], 8, Relation::Complete),
            // An owner that went on alone after its successor began.
            (&[a], 12, &[a, b], 11, Relation::Forked(100)),
            (&[a], 12, &[a, b], 10, Relation::Complete),
            (&[a], 10, &[a, b], 11, Relation::Contained),
            // A history that is cut off.
            (&[b, c], 25, &[a, b], 20, Relation::Complete),
            (&[a], 7, &[b, c], 25, Relation::Unrelated),
            (&[], 7, &[a], 7, Relation::Unrelated),
        ] {
            assert_eq!(relation(own, last, stream, stored), expected, "{own:?} {last}, {stream:?} {stored}");
        }
    }

    /// A copy of a store in the model: its commits, each with a name of its own, and its runs.
    #[derive(Clone, Debug, Default)]
    struct Model {
        commits: Vec<u64>,
        runs: Vec<Run>,
    }

    impl Model {
        fn copy(&self) -> Copy<'_> {
            Copy { runs: &self.runs, at: at(self.commits.len() as u64) }
        }

        fn has(&self, other: &Model) -> bool {
            self.commits.starts_with(&other.commits)
        }

        /// The number of commits that both have.
        fn shared(&self, other: &Model) -> usize {
            self.commits.iter().zip(&other.commits).take_while(|(one, other)| one == other).count()
        }
    }

    proptest! {
        /// Copies of one store: each act begins a run on one of them, makes commits, or makes a copy of a copy.
        #[test]
        fn relation_is_that_of_the_commits(acts in prop::collection::vec((0u8..4, any::<u8>(), 1u64..5), 1..60)) {
            let (mut copies, mut names) = (vec![Model::default()], 1u64);
            copies[0].runs.push(run(0, 0, 1));
            for (act, which, count) in acts {
                let which = usize::from(which) % copies.len();
                let commits = copies[which].commits.len() as u64;
                names += 1;
                match act {
                    // Each commit accepts one message: sequence numbers are positions.
                    0 => copies[which].runs.push(run(names, commits, commits + 1)),
                    1 if copies.len() < 5 => {
                        // One process writes: the copy of its folder begins another run before it is written.
                        let mut copy = copies[which].clone();
                        copy.runs.push(run(names, commits, commits + 1));
                        copies.push(copy);
                    }
                    _ => for _ in 0..count {
                        names += 1;
                        copies[which].commits.push(names);
                    }
                }
            }
            for volume in &copies {
                for stream in &copies {
                    let shared = volume.shared(stream) as u64;
                    let expected = match (volume.has(stream), stream.has(volume)) {
                        (true, _) => Relation::Complete,
                        (false, true) => Relation::Contained,
                        (false, false) => Relation::Forked(shared + 1),
                    };
                    prop_assert_eq!(volume.copy().relation(stream.copy()), expected);
                }
            }
        }
    }
}

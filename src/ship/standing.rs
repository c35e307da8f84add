//! The state of a stream: its owner, and the claims whose records do not count.
//!
//! A claim that begins anew, and everything behind it, counts only when its snapshot is complete: its end and all
//! later records are under the common subject again. So from the last record back, claim by claim, everything is
//! *provisional* until the first record that is under the common subject and is no such claim. A claim that
//! continues is passed over: it adds nothing to the records before it, and if it has an older position than they have, it is
//! a late copy, too.
//!
//! Records before a claim that are removed are passed over: the claim names the first provisional one, which stays. But
//! after the servers were put back from a backup, a late copy of a claim may be stored behind records that it knows nothing
//! of. So the first one is always looked for, and not taken from the last claim; and it is one under the common subject,
//! because others are removed.

use super::history::Copy;
use super::record::{self, Codec, Head, Kind, Owner, Unreadable};
use crate::storage::CommitPos;

/// A record, and the claim under whose subject it is, if it is provisional.
pub type Stored = (Vec<u8>, Option<u64>);

/// The records of a stream, by its leader.
pub trait Records {
    /// The error if the leader does not answer.
    type Error: From<Unreadable>;

    /// The record at a sequence. `None` if there is none.
    fn record(&self, sequence: u64) -> impl Future<Output = Result<Option<Stored>, Self::Error>> + Send;
}

/// The state of the stream, by its leader.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The sequence of the last record.
    pub last: u64,
    /// The last claim. `None` if the stream has no record.
    pub owner: Option<Owner>,
    /// The last commit.
    pub at: CommitPos,
    /// The last claims whose records do not count, because their snapshots are not complete; the newest last. An older one
    /// may be left out if its records are removed already.
    pub provisional: Vec<u64>,
    /// The sequence of the first of them.
    pub since: Option<u64>,
}

impl Standing {
    /// Finds the state of a stream that has records from the first sequence to the last, and the head of the last record
    /// that counts.
    ///
    /// # Errors
    /// If a record cannot be had, or not be read.
    pub async fn find<R: Records + Sync>(
        records: &R,
        codec: &Codec,
        first: u64,
        last: u64,
    ) -> Result<(Standing, Option<Head>), R::Error> {
        let mut standing = Standing { last, ..Standing::default() };
        let mut newest: Option<Head> = None;
        // Until the record before it is known, the newest may be a claim that continued another stream.
        let mut is_sure = false;
        // What claims say of the first provisional one; true behind records that are removed.
        let (mut named, mut is_behind_gap) = (Vec::new(), false);
        let mut kept = 0;
        let mut sequence = last;
        while sequence >= first.max(1) {
            let Some((record, subject)) = records.record(sequence).await? else {
                is_behind_gap = newest.is_some();
                sequence = match newest {
                    // Records that are removed never come last, unless the servers have lost others.
                    None => sequence - 1,
                    // The first claim is never removed.
                    Some(_) => named.iter().copied().filter(|first| *first < sequence).max().unwrap_or(0),
                };
                continue;
            };
            let head = record::head(&record)?;
            let at = sequence.saturating_sub(head.number);
            let claim = if head.number == 0 { Some((record, subject)) } else { records.record(at).await? };
            let is_claim = |of_claim: Head| of_claim.kind == Kind::Claim && of_claim.claim == head.claim;
            let Some((claim, subject_of_claim)) = claim.filter(|(claim, _)| record::head(claim).is_ok_and(is_claim))
            else {
                // A late copy of a record from before the last claim does not count.
                sequence -= 1;
                continue;
            };
            newest = newest.filter(|newest| is_sure || head.at <= newest.at);
            let owner = match newest {
                None => codec.owner(&claim)?,
                // The key of an older one may be gone.
                Some(_) => codec.owner(&claim).ok().flatten(),
            };
            let claims = head.kind == Kind::Claim;
            let continues = claims && owner.as_ref().is_some_and(|owner| owner.continues);
            named.extend(owner.as_ref().and_then(|owner| owner.since));
            is_sure = newest.is_some() || !continues;
            if newest.is_none() {
                (newest, standing.owner, standing.at) = (Some(head), owner, head.at);
            }
            let begins = claims && !continues;
            let is_common = subject_of_claim.is_none();
            // Behind a gap nothing is removed: what the last claims name may be another stream's.
            let is_provisional =
                if is_behind_gap { begins && is_common } else { begins || subject == Some(head.claim) };
            if is_provisional {
                if !is_behind_gap {
                    standing.provisional.push(head.claim);
                }
                if is_common {
                    (standing.since, kept) = (Some(at), standing.provisional.len());
                }
            } else if !continues {
                break;
            }
            sequence = at.saturating_sub(1);
        }
        // What comes before the first one stays, too.
        standing.provisional.truncate(kept);
        standing.provisional.reverse();
        Ok((standing, newest))
    }

    /// The copy of the store as the last record has it, although perhaps not all of it. `None` if the stream has no
    /// record.
    #[must_use]
    pub fn copy(&self) -> Option<Copy<'_>> {
        self.owner.as_ref().map(|owner| Copy { runs: &owner.runs, at: self.at })
    }
}

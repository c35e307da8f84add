//! The queued messages of a store that was set aside, as submissions: another relay has continued the queue without them.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::doctor::secret;
use super::survey::Survey;
use crate::message::{ClientToken, ConnectionToken, ConversationKey, Submission};
use crate::queue::rows::{Record, caller_of};
use crate::queue::state::contents;
use crate::storage::{Image, Sealer, SealingKey};

/// The messages of a store that are accepted anew.
#[derive(Debug, Default)]
pub struct Late {
    /// The messages in the order of acceptance.
    pub submissions: Vec<Submission>,
    /// The number of messages that cannot be read.
    pub unreadable: u64,
}

/// Reads the queued messages from this sequence number on.
///
/// # Errors
/// If the store cannot be read, or no key opens it.
pub fn late(path: &Path, keys: &[SealingKey], from: u64) -> io::Result<Late> {
    let log = Image::read(path, |_, _| ())?;
    let (known, _) = log.identity(path, keys).map_err(io::Error::other)?;
    let sealer = known.and_then(|known| known.sealer).ok_or_else(|| io::Error::other("no key opens it"))?;
    let survey = Survey::of(&log)?;
    let mut late = Late::default();
    for (_, at) in survey.queued()?.found.into_iter().filter(|(sequence, _)| *sequence >= from) {
        match survey.record(at)?.map(|record| submission(&log, &sealer, &record)).transpose()?.flatten() {
            Some(submission) => late.submissions.push(submission),
            None => late.unreadable += 1,
        }
    }
    Ok(late)
}

/// The submission of a record. `None` if a part of it cannot be read.
fn submission(log: &Image, sealer: &Sealer, record: &Record) -> io::Result<Option<Submission>> {
    let Some(body) = contents::body(record, sealer, |key| log.get(&key))? else { return Ok(None) };
    let Some((secret, keyed)) = secret(log, Some(sealer), record)? else { return Ok(None) };
    let conversation = keyed.then(|| ConversationKey::parse(record.label.as_bytes())).transpose();
    let parts = (ConnectionToken::parse(&secret), conversation, ClientToken::parse(&record.client_token));
    let (Ok(connection_token), Ok(conversation), Ok(Some(client_token))) = parts else { return Ok(None) };
    Ok(Some(Submission {
        body,
        client_token,
        connection_token,
        conversation,
        replaces: None,
        lifetime: (!record.default_lifetime).then_some(Duration::from_millis(record.lifetime_ms)),
        caller: caller_of(record.caller),
        trace_id: record.trace_id.as_deref().map(Into::into),
    }))
}

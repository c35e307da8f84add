//! The accepted messages, in order: an audit compares them with the submitted ones.

use std::fs::File;
use std::io::{self, Write as _};

use serde::Serialize;

/// One accepted message: a line of the ledger. It contains the token and the contents in the clear: a simulator's
/// ledger is for reading.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Entry {
    /// The id of the message.
    pub id: String,
    /// The time of its acceptance.
    pub absolute_time: String,
    /// The idempotency token of its request, if any.
    pub client_token: Option<String>,
    /// The credential of its request.
    pub connection_token: String,
    /// The type of the message.
    pub content_type: String,
    /// The contents of the message.
    pub content: String,
}

/// The destination of entries: a file, memory, both, or neither.
#[derive(Debug)]
pub(super) struct Ledger {
    file: Option<File>,
    kept: Option<Vec<Entry>>,
}

impl Ledger {
    pub(super) fn new(file: Option<File>, keep: bool) -> Ledger {
        Ledger { file, kept: keep.then(Vec::new) }
    }

    /// Appends one entry: one write for the whole line, so that a reader who follows the file sees whole lines.
    pub(super) fn append(&mut self, entry: Entry) -> io::Result<()> {
        if let Some(file) = &mut self.file {
            let mut line = serde_json::to_vec(&entry)?;
            line.push(b'\n');
            file.write_all(&line)?;
            file.flush()?;
        }
        if let Some(kept) = &mut self.kept {
            kept.push(entry);
        }
        Ok(())
    }

    pub(super) fn kept(&self) -> &[Entry] {
        self.kept.as_deref().unwrap_or_default()
    }
}

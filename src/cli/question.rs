//! Questions to a person at a terminal, on stderr.

use std::io::{IsTerminal as _, Write as _, stderr, stdin};

use anyhow::Context as _;

/// True if a person can answer.
pub fn can_be_answered() -> bool {
    stdin().is_terminal() && stderr().is_terminal()
}

/// Asks a question; true for yes.
pub fn ask(question: &str) -> anyhow::Result<bool> {
    write!(stderr(), "{question} [y/N] ")?;
    let mut answer = String::new();
    stdin().read_line(&mut answer).context("read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

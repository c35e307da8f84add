//! Standard output of the commands. A command whose output cannot be written (a full disk) has failed, and reports it.
//! If the reader has closed the pipe (`connect-relay check | head -1`), the remaining output is discarded silently, and
//! the exit code is that of the command's work.

use std::io::{self, Stdout, Write};
use std::process::ExitCode;

use anyhow::Context as _;

/// Standard output, or nothing once its reader has closed it.
#[derive(Debug)]
pub struct Out<W = Stdout> {
    to: W,
    reader_gone: bool,
}

/// Standard output.
pub fn stdout() -> Out {
    Out { to: io::stdout(), reader_gone: false }
}

/// Writes a whole text. Returns the exit code of a command that is done with that.
pub fn print(text: &str) -> anyhow::Result<ExitCode> {
    let mut out = stdout();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

impl<W> Out<W> {
    /// True if the reader has closed the pipe.
    pub fn has_no_reader(&self) -> bool {
        self.reader_gone
    }

    /// Writes, or does nothing once the reader has closed the pipe. Then the result is `instead`.
    fn unless_closed<T>(&mut self, write: impl FnOnce(&mut W) -> io::Result<T>, instead: T) -> io::Result<T> {
        if self.reader_gone {
            return Ok(instead);
        }
        match write(&mut self.to) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.reader_gone = true;
                Ok(instead)
            }
            result => result,
        }
    }
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.unless_closed(|to| to.write(bytes), bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unless_closed(Write::flush, ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(self.0.into())
        }
    }

    #[test]
    fn closed_pipe_is_no_error_and_a_full_disk_is() {
        let mut out = Out { to: Failing(io::ErrorKind::BrokenPipe), reader_gone: false };
        assert!(out.flush().is_ok() && out.has_no_reader());
        assert!(out.write_all(b"more").is_ok());
        let mut out = Out { to: Failing(io::ErrorKind::StorageFull), reader_gone: false };
        assert!(out.write_all(b"text").is_err() && out.flush().is_err() && !out.has_no_reader());
    }
}

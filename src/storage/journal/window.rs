//! A file that is read a piece at a time. A journal can have 17 MiB; a start that reads it holds [`BYTES`] of it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use memchr::memmem::Finder;

/// The bytes of a piece. (The tests' pieces end within their records.)
pub const BYTES: usize = if cfg!(test) { 1000 } else { 128 << 10 };

/// A file, and the piece of it that was read last.
pub struct Window {
    /// `None` if there is no such file.
    file: Option<File>,
    length: u64,
    /// The offset of the piece.
    at: u64,
    piece: Vec<u8>,
}

impl Window {
    /// Opens a file. A file that is missing is empty.
    pub fn open(path: &Path) -> io::Result<Window> {
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            file => Some(file?),
        };
        let metadata = file.as_ref().map(File::metadata).transpose()?;
        // A folder is no file: it counts as missing too.
        let length = metadata.filter(|metadata| !metadata.is_dir()).map_or(0, |metadata| metadata.len());
        Ok(Window { file, length, at: 0, piece: Vec::new() })
    }

    /// The length of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The bytes at an offset: `length` of them, or fewer at the end of the file.
    pub fn bytes(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let bytes = self.rest(at, length)?;
        Ok(&bytes[..length.min(bytes.len())])
    }

    /// The rest of the piece from an offset on. It has `least` bytes, unless the file ends before.
    pub fn rest(&mut self, at: u64, least: usize) -> io::Result<&[u8]> {
        let least = self.length.saturating_sub(at).min(least as u64);
        if at < self.at || at + least > self.at + self.piece.len() as u64 {
            self.read(at, least as usize)?;
        }
        Ok(self.piece.get((at - self.at) as usize..).unwrap_or_default())
    }

    fn read(&mut self, at: u64, least: usize) -> io::Result<()> {
        let length = self.length.saturating_sub(at).min(least.max(BYTES) as u64) as usize;
        self.at = at;
        self.piece.resize(length, 0);
        // The capacity for one long record is not kept.
        self.piece.shrink_to(BYTES);
        let read = self.file.as_ref().map_or(Ok(()), |file| file.read_exact_at(&mut self.piece, at));
        read.inspect_err(|_| self.piece.clear())
    }

    /// The offset of the first place with these bytes from an offset on.
    pub fn find(&mut self, mut from: u64, bytes: &Finder) -> io::Result<Option<u64>> {
        let wanted = bytes.needle().len();
        loop {
            let rest = self.rest(from, wanted)?;
            if let Some(found) = bytes.find(rest) {
                return Ok(Some(from + found as u64));
            }
            if rest.len() < wanted {
                return Ok(None);
            }
            // The bytes may begin in this piece and end in the next.
            from += (rest.len() + 1 - wanted) as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn bytes_are_found_across_the_ends_of_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        for at in BYTES - 9..BYTES + 2 {
            let mut bytes = vec![0; 3 * BYTES + 5];
            bytes[at..at + 8].copy_from_slice(b"a record");
            fs::write(&path, &bytes).unwrap();
            let mut window = Window::open(&path).unwrap();
            let finder = Finder::new(b"a record");
            assert_eq!(window.find(0, &finder).unwrap(), Some(at as u64));
            assert_eq!(window.find(at as u64, &finder).unwrap(), Some(at as u64));
            assert_eq!(window.find(at as u64 + 1, &finder).unwrap(), None);
            assert!(window.piece.len() <= BYTES);
            for (from, length) in [(at, 8), (0, bytes.len()), (bytes.len() - 3, 100), (bytes.len() + 7, 1)] {
                let wanted = bytes.get(from..bytes.len().min(from + length)).unwrap_or_default();
                assert_eq!(window.bytes(from as u64, length).unwrap(), wanted);
            }
        }
    }

    #[test]
    fn missing_file_and_folder_are_empty() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("none"), folder.path().to_owned()] {
            let mut window = Window::open(&path).unwrap();
            assert_eq!((window.length(), window.bytes(0, 10).unwrap()), (0, &[][..]));
        }
    }
}

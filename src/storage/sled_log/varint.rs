//! sled's encoding of numbers and runs of bytes.

/// The place of a row's value in the file.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub at: u64,
    pub length: usize,
}

/// A cursor over bytes, which never passes their end.
pub struct Bytes<'a> {
    pub payload: &'a [u8],
    pub at: usize,
}

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let taken = self.payload.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        Some(taken)
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    /// sled's varint.
    pub fn number(&mut self) -> Option<u64> {
        let first = self.byte()?;
        Some(match first {
            0..=240 => u64::from(first),
            241..=248 => 240 + 256 * (u64::from(first) - 241) + u64::from(self.byte()?),
            249 => 2288 + 256 * u64::from(self.byte()?) + u64::from(self.byte()?),
            250..=255 => {
                let length = usize::from(first) - 247;
                let mut number = [0; 8];
                number[..length].copy_from_slice(self.take(length)?);
                u64::from_le_bytes(number)
            }
        })
    }

    /// The place of the next run of bytes in the file, in which these bytes begin at `at`.
    pub fn place(&mut self, at: u64) -> Option<Place> {
        let length = self.run()?.len();
        Some(Place { at: at + (self.at - length) as u64, length })
    }

    /// A number of eight bytes.
    pub fn fixed(&mut self) -> Option<u64> {
        self.take(8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// A run of bytes after its length.
    pub fn run(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length)
    }
}

//! The format stamp: what a store is, and the key without which its rows mean nothing.
//!
//! The file `format` is four lines:
//!
//! ```text
//! connect-relay queue, format 3
//! store 9f86d081                 the nonce: what makes ids and sealed fields of this store differ from another's
//! key 0a1b…                      the key of the hashes, sealed where there is a key file
//! sum 5e1f00d5                   CRC-32 of the three before
//! ```
//!
//! It is written last at the first start, under another name, synced and renamed: **without it nothing was ever
//! acknowledged**, and a folder that has none is begun anew. It is written again when the first key of the
//! key file changes, in the same way, so that there is always one that is whole.
//!
//! A stamp of another format is never taken for damage: whatever else the file says, that is said first. One that no key
//! opens is not damaged either: it is told apart by its sum.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::OpenError;
use super::codec::{self, Secret};
use super::folder::{private, sync_ancestors, sync_directory};
use super::sealing::{Binding, Sealer, SealingKey};

/// Bytes of the key of the hashes.
const KEY_BYTES: usize = 32;

/// What the file says, its key opened.
pub struct Stamp {
    /// What makes ids of this store differ from another's.
    pub nonce: u32,
    /// The key of the hashes.
    pub key: Zeroizing<Vec<u8>>,
    /// As the file has it; none where there is no file yet.
    pub kept: Option<Secret>,
}

/// `connect-relay queue, format 3`, the nonce, the key and the sum of these, a line each.
pub fn read_stamp(path: &Path, keys: &[SealingKey]) -> Result<Option<Stamp>, OpenError> {
    let damaged = || OpenError::Damaged { path: path.to_owned(), damage: "its format stamp cannot be read".into() };
    let mut text = Zeroizing::new(String::new());
    match File::open(path.join("format")).and_then(|mut file| file.read_to_string(&mut text)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Err(damaged()),
        result => result.map_err(|error| OpenError::Failed {
            path: path.to_owned(),
            step: "read its format stamp",
            cause: error.to_string(),
        })?,
    };
    let mut lines = text.lines();
    let found: Option<u32> =
        lines.next().and_then(|line| line.strip_prefix("connect-relay queue, format ")?.parse().ok());
    if let Some(found) = found.filter(|found| *found != codec::FORMAT) {
        return Err(OpenError::OtherFormat { path: path.to_owned(), found, known: codec::FORMAT });
    }
    let nonce = lines.next().and_then(nonce);
    let kept = lines.next().and_then(|line| from_hex(line.strip_prefix("key ")?)).map(Secret::new);
    let (Some(_), Some(nonce), Some(kept)) = (found, nonce, kept) else { return Err(damaged()) };
    if text.rsplit_once("sum ").is_none_or(|(text, sum)| sum.trim_end() != stamp_sum(text)) {
        return Err(damaged());
    }
    let key = Sealer::new(keys.to_vec(), nonce).open(Binding::StoreKey, &kept);
    match key {
        Some(key) if key.len() == KEY_BYTES => Ok(Some(Stamp { nonce, key, kept: Some(kept) })),
        Some(_) => Err(damaged()),
        None => Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() }),
    }
}

/// The nonce of a store and what opens its secrets; no sealer where none of the keys does.
pub fn stamp_of(path: &Path, keys: &[SealingKey]) -> Result<Option<(u32, Option<Sealer>)>, OpenError> {
    match read_stamp(path, keys) {
        Ok(stamp) => Ok(stamp.map(|stamp| (stamp.nonce, Some(Sealer::new(keys.to_vec(), stamp.nonce))))),
        Err(OpenError::Sealed { .. }) => {
            let text = fs::read_to_string(path.join("format")).unwrap_or_default();
            Ok(text.lines().nth(1).and_then(nonce).map(|nonce| (nonce, None)))
        }
        Err(error) => Err(error),
    }
}

/// The first start: sled's own files first, for until the stamp is durable under its name, nothing was acknowledged.
pub fn first_stamp(path: &Path, db: &sled::Db, data: &File) -> io::Result<Stamp> {
    let mut random = [0; 4 + KEY_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    let nonce = u32::from_be_bytes([random[0], random[1], random[2], random[3]]);
    db.flush().map_err(io::Error::other)?;
    data.sync_all()?;
    for name in ["conf", "db"] {
        File::open(path.join(name))?.sync_all()?;
    }
    Ok(Stamp { nonce, key: Zeroizing::new(random[4..].to_vec()), kept: None })
}

/// Writes the stamp, sealed by the first key.
pub fn write_stamp(path: &Path, stamp: &Stamp, sealer: &Sealer) -> io::Result<()> {
    let (format, nonce) = (codec::FORMAT, stamp.nonce);
    let key = to_hex(sealer.seal(Binding::StoreKey, &stamp.key).bytes());
    let text = format!("connect-relay queue, format {format}\nstore {nonce:08x}\nkey {key}\n");
    let text = format!("{text}sum {}\n", stamp_sum(&text));
    let unnamed = path.join("format.new");
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true), &unnamed)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    sync_ancestors(path)?;
    fs::rename(&unnamed, path.join("format"))?;
    sync_directory(path)
}

/// Takes a stamp along into another folder; false where it is damaged or gone, and is to be made anew there.
pub fn copy_stamp(from: &Path, to: &Path) -> io::Result<bool> {
    let readable = !matches!(read_stamp(from, &[]), Ok(None) | Err(OpenError::Damaged { .. }));
    if readable {
        fs::copy(from.join("format"), to.join("format"))?;
        File::open(to.join("format"))?.sync_all()?;
    }
    Ok(readable)
}

fn nonce(line: &str) -> Option<u32> {
    u32::from_str_radix(line.strip_prefix("store ")?, 16).ok()
}

fn stamp_sum(text: &str) -> String {
    format!("{:08x}", crc32fast::hash(text.as_bytes()))
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

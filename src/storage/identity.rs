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
//! The log has a copy of it, in a row of its own: a start does not use it, but what carries a damaged store over does. Without
//! it the loss of the stamp would make every sealed value unreadable and every keyed hash meaningless. The copy also shows
//! whether stamp, log and journal are of one store: an operator may have put files of two stores together.
//!
//! A stamp of another format is never taken for damage: whatever else the file says, that is said first. One that no key
//! opens is not damaged either: it is told apart by its sum.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::directory::{private, sync_ancestors, sync_directory};
use super::error::OpenError;
use super::key::Key;
use super::names;
use super::sealing::{Sealer, SealingKey, Secret};

/// The version of everything on disk, rows and files. Any change of either raises it.
pub const FORMAT: u32 = 3;
/// The row in the log that has a copy of it.
pub fn copy_key() -> Key {
    Key::new(b'f')
}
/// The place that the key of the hashes is sealed for.
fn store_key_place() -> Key {
    Key::new(b's')
}
/// Bytes of the key of the hashes.
const KEY_BYTES: usize = 32;

/// What a stamp says, its key opened.
pub struct Stamp {
    /// What makes ids of this store differ from another's.
    pub nonce: u32,
    /// The key of the hashes.
    pub key: Zeroizing<Vec<u8>>,
    /// As the file has it; none where there is no file yet.
    pub kept: Option<Secret>,
}

/// What a stamp says to those who may not have its keys.
pub struct Known {
    pub nonce: u32,
    /// Opens the store's secrets; none where it is sealed and none of the keys does.
    pub sealer: Option<Sealer>,
}

/// A stamp as it was written.
struct Written {
    nonce: u32,
    kept: Secret,
}

/// As it stands there, and what it says.
type Found = (Zeroizing<String>, Written);

/// The stamp in a folder; none where there is no such file.
pub fn read_stamp(path: &Path, keys: &[SealingKey]) -> Result<Option<Stamp>, OpenError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let Written { nonce, kept } = parse(path, &text)?;
    match open(nonce, &kept, keys) {
        Some(key) if key.len() == KEY_BYTES => Ok(Some(Stamp { nonce, key, kept: Some(kept) })),
        Some(_) => Err(unreadable(path)),
        None => Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() }),
    }
}

/// What is known of a store whose log was read, and what is wrong with its stamp.
pub fn known(
    path: &Path,
    copy: Option<String>,
    keys: &[SealingKey],
) -> Result<(Option<Known>, Option<String>), OpenError> {
    let (written, damage) = find(path, copy)?;
    let known = written.map(|(_, Written { nonce, kept })| {
        let opens = open(nonce, &kept, keys).is_some();
        Known { nonce, sealer: opens.then(|| Sealer::new(keys.to_vec(), nonce)) }
    });
    Ok((known, damage))
}

/// Takes the stamp of a store along into another folder. Where it is lost, one is made anew there.
pub fn copy_stamp(from: &Path, copy: Option<String>, to: &Path) -> io::Result<()> {
    let (written, _) = find(from, copy).map_err(io::Error::other)?;
    let Some((text, _)) = written else { return Ok(()) };
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true), &to.join(names::STAMP))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// The stamp in the file, or where that is damaged, gone, or another store's, the copy of it in the log; and what is wrong
/// with the file.
fn find(path: &Path, copy: Option<String>) -> Result<(Option<Found>, Option<String>), OpenError> {
    let copy = copy.map(Zeroizing::new);
    let file = match text(path) {
        Ok(Some(text)) if copy.as_ref().is_some_and(|copy| !is_of_one_store(copy, &text)) => {
            parse(path, &text).and(Err(damaged(path, "its format stamp is another store's")))
        }
        Ok(Some(text)) => parse(path, &text).map(|written| (text, written)),
        Ok(None) => Err(damaged(path, "its format stamp is gone")),
        Err(error) => Err(error),
    };
    let damage = match file {
        Ok(found) => return Ok((Some(found), None)),
        Err(OpenError::Damaged { damage, .. }) => damage,
        Err(error) => return Err(error),
    };
    let copy = copy.and_then(|text| parse(path, &text).ok().map(|written| (text, written)));
    let damage = if copy.is_some() { format!("{damage}; the log has a copy of it") } else { damage };
    Ok((copy, Some(damage)))
}

/// What stands in the file, for the copy in the log.
pub fn text(path: &Path) -> Result<Option<Zeroizing<String>>, OpenError> {
    let mut text = Zeroizing::new(String::new());
    match File::open(path.join(names::STAMP)).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory) => Err(unreadable(path)),
        Err(error) => {
            Err(OpenError::Failed { path: path.to_owned(), step: "read its format stamp", cause: error.to_string() })
        }
    }
}

/// Whether two stamps are of the same store, perhaps under another key.
pub fn is_of_one_store(one: &str, other: &str) -> bool {
    one.lines().nth(1) == other.lines().nth(1)
}

fn parse(path: &Path, text: &str) -> Result<Written, OpenError> {
    let mut lines = text.lines();
    let found: Option<u32> =
        lines.next().and_then(|line| line.strip_prefix("connect-relay queue, format ")?.parse().ok());
    if let Some(found) = found.filter(|found| *found != FORMAT) {
        return Err(OpenError::OtherFormat { path: path.to_owned(), found, known: FORMAT });
    }
    let nonce = lines.next().and_then(|line| u32::from_str_radix(line.strip_prefix("store ")?, 16).ok());
    let kept = lines.next().and_then(|line| from_hex(line.strip_prefix("key ")?)).map(Secret::new);
    let (Some(_), Some(nonce), Some(kept)) = (found, nonce, kept) else { return Err(unreadable(path)) };
    if text.rsplit_once("sum ").is_none_or(|(text, sum)| sum.trim_end() != stamp_sum(text)) {
        return Err(unreadable(path));
    }
    Ok(Written { nonce, kept })
}

fn open(nonce: u32, kept: &Secret, keys: &[SealingKey]) -> Option<Zeroizing<Vec<u8>>> {
    Sealer::new(keys.to_vec(), nonce).open(&store_key_place(), kept)
}

fn unreadable(path: &Path) -> OpenError {
    damaged(path, "its format stamp cannot be read")
}

fn damaged(path: &Path, damage: &str) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), damage: damage.into() }
}

/// The stamp of a new store; it has no file yet.
pub fn new_stamp() -> io::Result<Stamp> {
    let mut random = [0; 4 + KEY_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    let nonce = u32::from_be_bytes([random[0], random[1], random[2], random[3]]);
    Ok(Stamp { nonce, key: Zeroizing::new(random[4..].to_vec()), kept: None })
}

/// Writes the stamp, sealed by the first key.
pub fn write_stamp(path: &Path, stamp: &Stamp, sealer: &Sealer) -> io::Result<()> {
    let (format, nonce) = (FORMAT, stamp.nonce);
    let key = to_hex(sealer.seal(&store_key_place(), &stamp.key).bytes());
    let text = format!("connect-relay queue, format {format}\nstore {nonce:08x}\nkey {key}\n");
    let text = format!("{text}sum {}\n", stamp_sum(&text));
    let unnamed = path.join(names::NEW_STAMP);
    let mut file = private(OpenOptions::new().create(true).truncate(true).write(true), &unnamed)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    sync_ancestors(path)?;
    fs::rename(&unnamed, path.join(names::STAMP))?;
    sync_directory(path)
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

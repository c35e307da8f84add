//! The format stamp: the identity of a store, and the key that its rows depend on.
//!
//! The file `format` has four lines:
//!
//! ```text
//! connect-relay queue, format 5
//! store 9f86d081                 the nonce: distinguishes ids and sealed values of this store from those of others
//! key 0a1b…                      the store's own key, sealed if there is a key file
//! sum 5e1f00d5                   CRC-32 of the three lines before
//! ```
//!
//! A first start writes it last, under another name, synced and renamed (rule 8 of the store): **without it nothing was
//! ever acknowledged**, and a folder that has none is begun anew. It is written again in the same way when the first
//! key of the key file changes, and when a store of an older format is opened, so that a whole one always exists.
//!
//! The log has a copy of it in a row. A start does not use the copy; the recovery of a damaged store does: without it,
//! the loss of the stamp would make every sealed value unreadable and every keyed hash meaningless. The copy also shows
//! whether stamp, log and journal are of one store: an operator may have put files of two stores together.
//!
//! A stamp of another format never counts as damage: it is reported before any other fault of the file. A stamp that no
//! key opens is not damaged either: its checksum is right.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use super::directory::{sync_directory, write_private};
use super::error::OpenError;
use super::key::Key;
use super::names;
use super::sealing::{Sealer, SealingKey, Secret};

/// The version of everything on disk, rows and files. Any change of either raises it. Format 4 added a row that ties the
/// times in the other rows to the machine's clocks; an older build would read these times as wall-clock times. Format 5
/// added a kind of row; an older build would quarantine these rows.
pub const FORMAT: u32 = 5;
/// The oldest format that is read. Every format from this one on must decode with the present types of rows and files.
/// Opening a store makes its format [`FORMAT`].
pub const OLDEST_FORMAT: u32 = 3;
/// The key of the row with the copy of the stamp.
pub fn copy_key() -> Key {
    Key::new(b'f')
}
/// The place that the store's own key is sealed for.
fn store_key_place() -> Key {
    Key::new(b's')
}
/// The length of the store's own key.
const KEY_BYTES: usize = 32;

/// A stamp whose key is open.
pub struct Stamp {
    /// The format of the store when it was read.
    pub format: u32,
    /// The number that distinguishes the ids of this store from those of others.
    pub nonce: u32,
    /// The store's own key.
    pub key: Zeroizing<Vec<u8>>,
    /// The key as it is in the file. `None` if there is no file yet.
    pub stored_key: Option<Secret>,
}

/// The identity of a store as far as the given keys open it.
pub struct Known {
    /// The format of the store.
    pub format: u32,
    /// The number that distinguishes the ids of this store from those of others.
    pub nonce: u32,
    /// Opens the store's sealed values. `None` if it is sealed and none of the keys opens it.
    pub sealer: Option<Sealer>,
}

/// A stamp whose key is as it was written.
struct Written {
    format: u32,
    nonce: u32,
    stored_key: Secret,
}

/// The text of a stamp, and the stamp.
type Found = (Zeroizing<String>, Written);

/// The stamp in a folder. `None` if there is no such file.
pub fn read_stamp(path: &Path, keys: &[SealingKey]) -> Result<Option<Stamp>, OpenError> {
    let Some(text) = text(path)? else { return Ok(None) };
    let Written { format, nonce, stored_key } = parse(path, &text)?;
    match open(nonce, &stored_key, keys) {
        Some(key) if key.len() == KEY_BYTES => Ok(Some(Stamp { format, nonce, key, stored_key: Some(stored_key) })),
        Some(_) => Err(unreadable(path)),
        None => Err(OpenError::Sealed { path: path.to_owned(), keys: keys.len() }),
    }
}

/// The identity of the store in a folder, and the damage to its stamp. `copy` is the log's copy of the stamp.
pub fn known(
    path: &Path,
    copy: Option<String>,
    keys: &[SealingKey],
) -> Result<(Option<Known>, Option<String>), OpenError> {
    let (written, damage) = find(path, copy)?;
    let known = written.map(|(_, Written { format, nonce, stored_key })| {
        let opens = open(nonce, &stored_key, keys).is_some();
        Known { format, nonce, sealer: opens.then(|| Sealer::new(keys.to_vec(), nonce)) }
    });
    Ok((known, damage))
}

/// Copies the stamp of a store, or the log's `copy` of it, into another folder. If both are lost, it copies none.
pub fn copy_stamp(from: &Path, copy: Option<String>, to: &Path) -> io::Result<()> {
    let (written, _) = find(from, copy).map_err(io::Error::other)?;
    let Some((text, _)) = written else { return Ok(()) };
    write_private(&to.join(names::STAMP), text.as_bytes())
}

/// The stamp in the file, or the copy if the file is damaged, gone, or another store's; and the damage to the file.
fn find(path: &Path, copy: Option<String>) -> Result<(Option<Found>, Option<String>), OpenError> {
    let copy = copy.map(Zeroizing::new);
    let file = match text(path) {
        Ok(Some(text)) if copy.as_ref().is_some_and(|copy| !is_of_one_store(copy, &text)) => {
            parse(path, &text).and(Err(OpenError::damaged(path, "its format stamp is another store's")))
        }
        Ok(Some(text)) => parse(path, &text).map(|written| (text, written)),
        Ok(None) => Err(OpenError::damaged(path, "its format stamp is missing")),
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

/// The text of the stamp file. `None` if there is no such file.
pub fn text(path: &Path) -> Result<Option<Zeroizing<String>>, OpenError> {
    let mut text = Zeroizing::new(String::new());
    match File::open(path.join(names::STAMP)).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::IsADirectory) => Err(unreadable(path)),
        Err(error) => Err(OpenError::failed(path, "read its format stamp", error)),
    }
}

/// Returns true if two stamps are of the same store, perhaps under another key.
pub fn is_of_one_store(one: &str, other: &str) -> bool {
    one.lines().nth(1) == other.lines().nth(1)
}

/// Returns true if the store in a folder has this stamp, perhaps under another key.
///
/// # Errors
/// If its stamp cannot be read.
pub fn is_store(path: &Path, stamp: &str) -> Result<bool, OpenError> {
    Ok(text(path)?.is_some_and(|text| is_of_one_store(&text, stamp)))
}

fn parse(path: &Path, text: &str) -> Result<Written, OpenError> {
    let mut lines = text.lines();
    let found: Option<u32> =
        lines.next().and_then(|line| line.strip_prefix("connect-relay queue, format ")?.parse().ok());
    if let Some(found) = found.filter(|found| !(OLDEST_FORMAT..=FORMAT).contains(found)) {
        return Err(OpenError::OtherFormat { path: path.to_owned(), found, oldest: OLDEST_FORMAT, newest: FORMAT });
    }
    let nonce = lines.next().and_then(|line| u32::from_str_radix(line.strip_prefix("store ")?, 16).ok());
    let stored_key = lines.next().and_then(|line| from_hex(line.strip_prefix("key ")?)).map(Secret::new);
    let (Some(format), Some(nonce), Some(stored_key)) = (found, nonce, stored_key) else {
        return Err(unreadable(path));
    };
    if text.rsplit_once("sum ").is_none_or(|(text, sum)| sum.trim_end() != stamp_sum(text)) {
        return Err(unreadable(path));
    }
    Ok(Written { format, nonce, stored_key })
}

fn open(nonce: u32, stored_key: &Secret, keys: &[SealingKey]) -> Option<Zeroizing<Vec<u8>>> {
    Sealer::new(keys.to_vec(), nonce).open(&store_key_place(), stored_key)
}

fn unreadable(path: &Path) -> OpenError {
    OpenError::damaged(path, "its format stamp cannot be read")
}

/// The stamp of a new store; it has no file yet.
pub fn new_stamp() -> io::Result<Stamp> {
    let mut random = [0; 4 + KEY_BYTES];
    SystemRandom::new().fill(&mut random).map_err(|_| io::Error::other("the system gave no random bytes"))?;
    let nonce = u32::from_be_bytes([random[0], random[1], random[2], random[3]]);
    Ok(Stamp { format: FORMAT, nonce, key: Zeroizing::new(random[4..].to_vec()), stored_key: None })
}

/// Writes the stamp, sealed by the first key. The caller has synced the folders above.
pub fn write_stamp(path: &Path, stamp: &Stamp, sealer: &Sealer) -> io::Result<()> {
    let (format, nonce) = (FORMAT, stamp.nonce);
    let key = to_hex(sealer.seal(&store_key_place(), &stamp.key).bytes());
    let text = format!("connect-relay queue, format {format}\nstore {nonce:08x}\nkey {key}\n");
    let text = format!("{text}sum {}\n", stamp_sum(&text));
    let unnamed = path.join(names::NEW_STAMP);
    write_private(&unnamed, text.as_bytes())?;
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

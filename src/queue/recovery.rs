//! Recovery of damaged stores. It reads a store offline, without sled; only it and the queue's thread know rows and storage.
//!
//! `survey` finds the valid rows of a log, and the messages that are queued or lost. [`set_aside`] moves a damaged store
//! aside at a start and rebuilds it from them. [`Doctor`] checks, exports and repairs a store on which no relay runs.

mod doctor;
mod late;
mod rebuild;
mod survey;

use std::io;

use tracing::error;

pub use self::doctor::{Doctor, Exported, LeftStore, Report, named};
pub use self::late::{Late, late};
pub use self::rebuild::Rebuilt;
use self::rebuild::rebuild;
use super::api::Options;
use crate::storage::{self, Image, OpenError};
use crate::time::Clock;

/// Links the files of a damaged store into a folder beside it, and puts a new store of its valid rows in their place. Logs
/// the result.
///
/// # Errors
/// If no key opens the store, or a file cannot be read or written.
pub fn set_aside(options: &Options, clock: &Clock, damage: &str) -> Result<(), OpenError> {
    let path = &options.path;
    let _lock = storage::lock(path)?;
    let failed = |cause: io::Error| OpenError::Failed {
        path: path.clone(),
        step: "set the damaged store aside",
        cause: format!("{cause}; it was found damaged: {damage}"),
    };
    // Refuse before anything is changed: without the key the new store could not be read.
    let (identity, _) = Image::read(path, |_, _| ()).map_err(failed)?.identity(path, &options.keys)?;
    if identity.is_some_and(|known| known.sealer.is_none()) {
        return Err(OpenError::Sealed { path: path.clone(), keys: options.keys.len() });
    }
    let aside = storage::quarantine(path, clock.wall()).map_err(failed)?;
    let rebuilt = Image::read(&aside, |_, _| ()).and_then(|image| {
        let fresh = storage::replacement_folder(path)?;
        let rebuilt = rebuild(&image, path, &fresh, options, clock)?;
        storage::replace_quarantined(path, &aside)?;
        Ok(rebuilt)
    });
    let Rebuilt { queued, dead, outcomes, lost } = rebuilt.map_err(failed)?;
    error!(
        queue = %path.display(),
        damage,
        queued,
        dead,
        outcomes,
        lost,
        "the queue was damaged and is set aside; what verifies was carried over: connect-relay doctor check {}",
        aside.display()
    );
    Ok(())
}

//! The exit codes.

use crate::config::Faults;
use crate::daemon::Failure;

/// Exit code: the command failed.
pub const FAILED: u8 = 1;
/// Exit code: messages are left on disk (sysexits.h: EX_TEMPFAIL).
pub const UNDELIVERED: u8 = 75;
/// Exit code: the configuration is wrong (sysexits.h: EX_CONFIG).
pub const CONFIG: u8 = 78;

/// The exit code of an error.
pub fn code(error: &anyhow::Error) -> u8 {
    let config = error.is::<Faults>() || matches!(error.downcast_ref(), Some(Failure::Config(_)));
    if config { CONFIG } else { FAILED }
}

//! The bots' socket from a service manager (sd_listen_fds(3)): descriptor 3, announced by three variables.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `LISTEN_PID` | the process that the other two are for; in any other process they are ignored |
//! | `LISTEN_FDS` | the number of descriptors, from 3 on |
//! | `LISTEN_FDNAMES` | their names, separated by colons: `FileDescriptorName=` of the socket units |
//!
//! Only [`run`](super::run) reads them. The relay starts no program, so neither the variables nor the descriptor pass on.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::{FdFlags, fcntl_setfd};

use crate::serve::Inherited;

/// The name of the bots' socket: `FileDescriptorName=ingress`.
const NAME: &str = "ingress";
/// The descriptor of the first socket.
const FIRST: i32 = 3;

/// Returns the bots' socket if the service manager passes one. `path` is `ingress.socket`.
///
/// # Errors
/// If what it passes is not exactly one socket of that name, listening at the path.
pub fn bots_socket(path: &Path) -> Result<Option<Inherited>, String> {
    let variable = |name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let [pid, sockets, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
    if !is_announced(std::process::id(), pid.as_deref(), sockets.as_deref(), names.as_deref())? {
        return Ok(None);
    }
    let refused = |cause| format!("the inherited socket {NAME} (descriptor {FIRST}) cannot be used: {cause}");
    let descriptor = duplicate().map_err(|error| refused(format!("it cannot be opened: {error}")))?;
    Inherited::new(descriptor, path).map(Some).map_err(refused)
}

/// True if one socket of the bots' name is passed to the process `own`; false if none is.
fn is_announced(own: u32, pid: Option<&str>, sockets: Option<&str>, names: Option<&str>) -> Result<bool, String> {
    let (Some(pid), Some(sockets)) = (pid, sockets) else { return Ok(false) };
    if pid.parse() != Ok(own) {
        return Ok(false);
    }
    let Ok(number) = sockets.parse::<u32>() else {
        return Err(format!("LISTEN_FDS={sockets:?} is not a number of inherited sockets"));
    };
    let rule = format!("connect-relay takes one, with FileDescriptorName={NAME} in its socket unit");
    match (number, names) {
        (0, _) => Ok(false),
        (1, Some(NAME)) => Ok(true),
        (1, Some(name)) => Err(format!("the inherited socket has the unknown name {name:?}: {rule}")),
        (1, None) => Err(format!("the inherited socket has no name (LISTEN_FDNAMES): {rule}")),
        (number, names) => {
            Err(format!("{number} sockets are inherited (LISTEN_FDNAMES={:?}): {rule}", names.unwrap_or_default()))
        }
    }
}

/// Duplicates the inherited descriptor; the original stays open until the relay exits, so that it is never used for
/// anything else.
fn duplicate() -> Result<OwnedFd, std::io::Error> {
    #[expect(unsafe_code, reason = "an inherited descriptor is only a number")]
    // SAFETY: the service manager opened it for this process, and nothing here closes it. If that is not true, it is
    // closed, and the calls below fail, or it is one of the relay's own that stays open, and `Inherited` refuses it.
    let passed = unsafe { BorrowedFd::borrow_raw(FIRST) };
    fcntl_setfd(passed, FdFlags::CLOEXEC)?;
    passed.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_of_the_bots_name_for_this_process_is_taken() {
        let announced = |pid, sockets, names| is_announced(7, pid, sockets, names);
        assert_eq!(announced(Some("7"), Some("1"), Some("ingress")), Ok(true));
        for (pid, sockets, names) in [
            (None, None, None),
            (None, Some("1"), Some("ingress")),
            (Some("7"), None, Some("ingress")),
            (Some("8"), Some("1"), Some("ingress")),
            (Some("8"), Some("many"), Some("other")),
            (Some("x"), Some("1"), Some("ingress")),
            (Some("7"), Some("0"), None),
            (Some("7"), Some("0"), Some("")),
        ] {
            assert_eq!(announced(pid, sockets, names), Ok(false), "{pid:?} {sockets:?} {names:?}");
        }
        for (sockets, names, text) in [
            (
                "1",
                Some("metrics"),
                "the unknown name \"metrics\": connect-relay takes one, with FileDescriptorName=ingress",
            ),
            ("1", Some("connect-relay.socket"), "the unknown name \"connect-relay.socket\""),
            ("1", Some("ingress:ingress"), "the unknown name"),
            ("1", Some("ingress "), "the unknown name"),
            ("1", Some(""), "the unknown name \"\""),
            ("1", None, "has no name (LISTEN_FDNAMES)"),
            (
                "2",
                Some("ingress:ingress"),
                "2 sockets are inherited (LISTEN_FDNAMES=\"ingress:ingress\"): connect-relay takes one",
            ),
            ("2", Some("ingress"), "2 sockets are inherited"),
            ("2", None, "2 sockets are inherited"),
            ("-1", Some("ingress"), "LISTEN_FDS=\"-1\" is not a number"),
            ("", Some("ingress"), "LISTEN_FDS=\"\" is not a number"),
            ("99999999999", Some("ingress"), "is not a number"),
        ] {
            let error = announced(Some("7"), Some(sockets), names).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }
}

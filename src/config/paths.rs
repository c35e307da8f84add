//! Paths in a configuration must be absolute: no shell expands them, and the working directory of a service is
//! arbitrary. This module finds the path that was probably meant by one that is not.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// True unless the path begins with a part that a shell would have expanded: `~`, `$NAME`, `${NAME}`, Kubernetes'
/// `$(NAME)`.
pub fn is_plain(path: &Path) -> bool {
    !path.to_string_lossy().starts_with(['~', '$'])
}

/// The absolute path that was probably meant. `default` is the one that the relay uses if none is set. It is returned
/// if the path names a user or a variable that is unknown here.
pub fn probable_path(path: &Path, default: &Path, environment: &[(OsString, OsString)]) -> PathBuf {
    if is_plain(path) {
        return std::path::absolute(path).unwrap_or_else(|_| default.into());
    }
    let text = path.to_string_lossy();
    let (first, rest) = text.split_once('/').unwrap_or((&text, ""));
    let root = match first.strip_prefix('~') {
        Some("") => value(environment, "HOME"),
        Some(user) => Some(Path::new("/home").join(user)),
        None => value(environment, first.trim_matches(['$', '{', '}', '(', ')'])),
    };
    match root {
        // Joining an empty path would add a slash.
        Some(root) if rest.is_empty() => root,
        Some(root) => root.join(rest.trim_start_matches('/')),
        None => default.into(),
    }
}

/// A variable that holds an absolute path.
fn value(environment: &[(OsString, OsString)], name: &str) -> Option<PathBuf> {
    let found = environment.iter().find(|(key, _)| key == OsStr::new(name));
    found.map(|(_, value)| PathBuf::from(value)).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_that_a_shell_would_have_expanded_is_found() {
        let environment = [("HOME", "/home/bot"), ("DATA", "/data"), ("EMPTY", ""), ("NAME", "bot")];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        let of = |path: &str| probable_path(Path::new(path), Path::new("/default"), &environment);
        for (path, expected) in [
            ("~/queue", "/home/bot/queue"),
            ("~", "/home/bot"),
            ("~ann/queue", "/home/ann/queue"),
            ("$HOME/queue", "/home/bot/queue"),
            ("${DATA}/a/b", "/data/a/b"),
            ("$(DATA)//a", "/data/a"),
            ("$DATA", "/data"),
            ("$EMPTY/queue", "/default"),
            ("$NAME/queue", "/default"),
            ("$UNSET/queue", "/default"),
        ] {
            assert_eq!(of(path).to_str(), Some(expected), "{path}");
        }
        assert_eq!(of("./queue"), std::env::current_dir().unwrap().join("queue"));
        assert_eq!(probable_path(Path::new("~/queue"), Path::new("/default"), &[]), Path::new("/default"));
    }
}

//! Subjects: any name becomes one part of a subject, and two names never become the same part.
//!
//! The parts of a subject are separated by dots, and `*`, `>` and spaces have a meaning. So letters, digits, `-` and `_`
//! stay, and each other byte becomes `=` and two hex digits. A part of more than `PART_MAX` bytes becomes `==` and a
//! hash, because a server refuses long subjects.

use std::fmt::Write as _;

use ring::digest::{SHA256, digest};

/// The longest part that is written out.
const PART_MAX: usize = 96;

/// The subject on which the relays of a fleet with one Connect instance and one destination share their quota.
#[must_use]
pub fn of_quota(fleet: &str, connect_instance: &str, destination: &str) -> String {
    format!("cr.{}.q.{}.{}", part(fleet), part(connect_instance), part(destination))
}

/// A name as one part of a subject.
#[must_use]
pub fn part(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_' {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "={byte:02x}");
        }
    }
    if text.is_empty() {
        // A part cannot be empty.
        return "=".into();
    }
    if text.len() <= PART_MAX {
        return text;
    }
    let hash = digest(&SHA256, name.as_bytes());
    hash.as_ref()[..16].iter().fold("==".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn subject_names_fleet_instance_and_destination() {
        let subject = of_quota("connect-relay", "shop", "participant.connect.eu-west-2.amazonaws.com");
        assert_eq!(subject, "cr.connect-relay.q.shop.participant=2econnect=2eeu-west-2=2eamazonaws=2ecom");
        assert_eq!(part("a b.*>é="), "a=20b=2e=2a=3e=c3=a9=3d");
        assert_eq!(part(""), "=");
        let long = part(&"x".repeat(97));
        assert!(long.starts_with("==") && long.len() == 34, "{long}");
        assert_ne!(long, part(&"x".repeat(98)));
        assert_eq!(part(&"x".repeat(96)).len(), 96);
    }

    proptest! {
        #[test]
        fn two_names_never_share_a_part(one in ".{0,60}", other in ".{0,60}") {
            prop_assert_eq!(part(&one) == part(&other), one == other);
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=');
            prop_assert!(!part(&one).is_empty() && part(&one).chars().all(plain));
        }
    }
}

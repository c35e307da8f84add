//! Access control: the peer's user, its group and its supplementary groups, against `ingress.allow_uids` and
//! `ingress.allow_gids`.
//!
//! The kernel reports the user, the group and the process of a Unix socket's peer. The supplementary groups are in
//! `/proc`, and only for a process that this relay can see: in another container's process namespace it has no number,
//! and then only the user and the primary group count. They are read only if those two are not on a list. If the
//! process runs as another user by then, it is another process.

use crate::serve::Peer;

/// True if the peer is allowed. If both lists are empty, the socket's mode has decided already.
pub(super) fn is_allowed(uids: &[u32], gids: &[u32], peer: Peer) -> bool {
    if uids.is_empty() && gids.is_empty() {
        return true;
    }
    match peer {
        Peer::Unix { uid, gid, .. } if uids.contains(&uid) || gids.contains(&gid) => true,
        Peer::Unix { uid, pid: Some(pid), .. } if pid > 0 && !gids.is_empty() => {
            std::fs::read_to_string(format!("/proc/{pid}/status"))
                .is_ok_and(|status| supplementary(&status, uid).any(|gid| gids.contains(&gid)))
        }
        _ => false,
    }
}

/// The supplementary groups in a `/proc/PID/status`; none if its process runs as another user.
fn supplementary(status: &str, uid: u32) -> impl Iterator<Item = u32> {
    let line = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let numbers = |text: &'_ str| text.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
    // Real, effective, saved, file system: the kernel reported the effective one.
    let users: Vec<u32> = numbers(line("Uid:"));
    let groups: Vec<u32> = if users.get(1) == Some(&uid) { numbers(line("Groups:")) } else { Vec::new() };
    groups.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tbot\nUmask:\t0022\nUid:\t1000\t1001\t1001\t1001\nGid:\t5\t5\t5\t5\nGroups:\t20 44 \nVmPeak:\t8\n";

    #[test]
    fn supplementary_groups_are_those_of_the_user_the_kernel_named() {
        assert_eq!(supplementary(STATUS, 1001).collect::<Vec<_>>(), [20, 44]);
        assert_eq!(supplementary(STATUS, 1000).count(), 0);
        assert_eq!(supplementary("", 0).count(), 0);
    }

    #[test]
    fn peer_needs_its_user_or_one_of_its_groups_on_a_list() {
        let peer = |uid, gid| Peer::Unix { uid, gid, pid: None };
        for (uids, gids, peer, allowed) in [
            (&[][..], &[][..], Peer::Tcp, true),
            (&[], &[], peer(7, 8), true),
            (&[7], &[], peer(7, 8), true),
            (&[], &[8], peer(7, 8), true),
            (&[9], &[8], peer(7, 8), true),
            (&[9], &[], peer(7, 8), false),
            (&[8], &[7], peer(7, 8), false),
            (&[7], &[], Peer::Tcp, false),
        ] {
            assert_eq!(is_allowed(uids, gids, peer), allowed, "{uids:?} {gids:?} {peer:?}");
        }
    }
}

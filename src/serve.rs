//! Who is at the other end of a connection.

/// The peer of a connection, as the kernel vouches for it.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "sketch")]
pub enum Peer {
    Unix { uid: u32, gid: u32, pid: Option<i32> },
    Tcp,
}

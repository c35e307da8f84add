//! Gives memory back to the system.
//!
//! The queue frees what it is done with in pieces of all sizes, and glibc keeps them, between others that live on, for
//! whoever asks next: a relay through which 150,000 messages had passed held 129 MiB, of which it used 52. A pod is
//! charged for what is held.

/// Gives back what the allocator keeps and nobody uses. It costs some milliseconds where that is much.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a C function that no crate wraps")]
    // SAFETY: malloc_trim may be called at any time from any thread; it touches only what is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

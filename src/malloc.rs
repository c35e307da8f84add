//! Returns unused memory to the system.
//!
//! The queue frees memory in pieces of all sizes. glibc keeps these pieces, which are between others in use,
//! for later allocations. A relay through which 150,000 messages had passed held 129 MiB, of which it used 52. A pod is
//! charged for the memory that it holds.

/// Returns the free memory that the allocator holds. This takes some milliseconds if there is much of it.
pub fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a C function that no crate wraps")]
    // SAFETY: malloc_trim may be called at any time from any thread; it touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// The free memory at the end of a heap above which glibc returns it, and the memory that it takes in advance. Its own
/// values grow with the largest block that was ever freed, up to 64 MiB.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: libc::c_int = 64 << 10;

/// Makes the allocator return free memory early. Call it once, before other threads start. With 40,000 messages queued the
/// relay takes 29 MiB with it and 37 MiB without, and at rest 9.0 and 10.4 MiB, for at most 5 % fewer accepts per second at
/// full load.
pub fn return_early() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "a C function that no crate wraps")]
    // SAFETY: mallopt may be called at any time; these two settings take any number.
    unsafe {
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
        libc::mallopt(libc::M_TOP_PAD, KEPT_BYTES);
    }
}

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

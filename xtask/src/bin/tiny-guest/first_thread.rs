//! The end of a process's first thread before the others.

#![expect(unsafe_code, reason = "no library ends a single thread without its clean-up")]

/// Ends the calling thread, and leaves the process to its other threads.
pub(crate) fn end() -> ! {
    // SAFETY: exit(2) ends the calling thread only. Nothing of its stack is used by another thread: the caller has handed all
    // that it had to the threads that it started.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("exit(2) does not return")
}

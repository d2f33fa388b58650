//! Atomic instructions on map memory (BPF instruction set v3, Linux 5.12). All are sequentially consistent.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

#[cfg(target_arch = "bpf")]
use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_or, atomic_xadd};
#[cfg(not(target_arch = "bpf"))]
use core::sync::atomic::{AtomicU64, Ordering};

/// Adds `n` and returns the previous value. Wraps.
///
/// # Safety
///
/// `word` is aligned, lies in a map's value, and is written by atomic instructions and whole stores only.
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, n: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, n)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        AtomicU64::from_ptr(word).fetch_add(n, Ordering::SeqCst)
    }
}

/// Sets bits and returns the previous value.
///
/// # Safety
///
/// `word` is aligned, lies in a map's value, and is written by atomic instructions and whole stores only.
#[inline(always)]
pub(crate) unsafe fn fetch_or(word: *mut u64, bits: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(word, bits)
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        AtomicU64::from_ptr(word).fetch_or(bits, Ordering::SeqCst)
    }
}

/// Stores `new` if the word is `old`. Returns whether it was.
///
/// # Safety
///
/// `word` is aligned, lies in a map's value, and is written by atomic instructions and whole stores only.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    #[cfg(target_arch = "bpf")]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new)
            .1
    }
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: `word` is valid and aligned: upheld by the caller under this function's own `# Safety`.
    unsafe {
        AtomicU64::from_ptr(word)
            .compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

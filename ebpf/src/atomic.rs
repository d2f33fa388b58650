//! Atomic instructions on map memory (BPF instruction set v3, Linux 5.12).

use core::intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd};

/// Adds and gives back the value before. Wraps.
///
/// # Safety
///
/// `word` is aligned and lies in a map's value.
#[inline(always)]
pub(crate) unsafe fn fetch_add(word: *mut u64, n: u64) -> u64 {
    // SAFETY: the caller's.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(word, n) }
}

/// Stores `new` if the word is `old`; whether it was.
///
/// # Safety
///
/// `word` is aligned and lies in a map's value.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> bool {
    // SAFETY: the caller's.
    unsafe { atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word, old, new).1 }
}

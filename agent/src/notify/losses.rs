//! The changes that were dropped because their queue was full: what was queued or held back of the same VM before tells of a
//! state that the VM has left.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use crate::inventory::{Change, ChangeEvent};

/// Numbers the changes, and keeps of each VM the last one that was dropped until the notifier has taken note of it.
#[derive(Debug, Default)]
pub(super) struct Losses {
    next: AtomicU64,
    /// By vmIndex.
    lost: Mutex<HashMap<u32, Loss>>,
}

/// The last change of a VM that was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Loss {
    /// Its number.
    pub(super) number: u64,
    /// Whether the VM was deleted with it, or with one that was dropped before.
    pub(super) is_deleted: bool,
}

impl Losses {
    /// The number of the next change.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Relaxed)
    }

    /// A change was dropped.
    pub(super) fn note(&self, number: u64, change: &Change) {
        let is_deleted = change.event == ChangeEvent::Deleted;
        let mut lost = self.lost();
        let loss = lost.entry(change.index.0).or_insert(Loss { number, is_deleted });
        (loss.number, loss.is_deleted) = (number, loss.is_deleted || is_deleted);
    }

    /// The losses since the last call, by vmIndex.
    pub(super) fn take(&self) -> HashMap<u32, Loss> {
        std::mem::take(&mut *self.lost())
    }

    fn lost(&self) -> MutexGuard<'_, HashMap<u32, Loss>> {
        // Each change of it is one call that leaves it whole.
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

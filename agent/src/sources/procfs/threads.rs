//! Registers the threads of a process for counting.

use std::collections::HashMap;

use super::{process::Thread, scan::Scan};
use crate::{
    counters::{ThreadSlot, VmSlot},
    counting::{HeldThread, TrackError, Tracker},
};

/// Most listings of the threads of a process in one scan, until no new thread is found.
const PASSES: usize = 8;

/// What came of the registration.
pub(super) struct Registered {
    /// Slots by thread id.
    pub(super) slots: HashMap<u32, ThreadSlot>,
    /// Whether another scan is needed: threads started meanwhile, or the record of one does not follow it yet.
    pub(super) is_moving: bool,
    /// Why a thread has no record.
    pub(super) failure: Option<TrackError>,
}

/// Registers every thread of a VM's process.
pub(super) fn register(tracker: &dyn Tracker, slot: VmSlot, pid: u32, scan: &Scan) -> Registered {
    let mut slots = HashMap::new();
    let mut later: Vec<Thread> = Vec::new();
    let mut failure = None;
    let mut tried = 0;
    let mut all_since = None;
    for _ in 0..PASSES {
        let threads =
            if tried == 0 { &scan.threads[..] } else { &later[tried - scan.threads.len()..] };
        tried += threads.len();
        // The process is known by its first thread; vCPUs come before others if records run out.
        let vcpu = |thread: &Thread| scan.vcpus.get(&thread.tid()).copied();
        let mut threads: Vec<_> = threads.iter().collect();
        threads.sort_by_key(|thread| (thread.tid() != pid, vcpu(thread).is_none()));
        for thread in threads {
            match tracker.track_thread(slot, thread, vcpu(thread)) {
                Ok(thread_slot) => {
                    slots.insert(thread.tid(), thread_slot);
                }
                Err(TrackError::Gone { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        // There is no event for a thread that an unregistered thread started meanwhile.
        let known = |tid| scan.threads.iter().chain(&later).any(|thread| thread.tid() == tid);
        let unrecorded = tracker.unrecorded(slot);
        match scan.process.threads_except(known) {
            Ok(more) if !more.is_empty() => later.extend(more),
            Ok(_) => {
                all_since = Some(unrecorded).filter(|_| failure.is_none());
                break;
            }
            Err(_) => break,
        }
    }
    let all: Vec<&dyn HeldThread> =
        scan.threads.iter().chain(&later).map(|thread| thread as &dyn HeldThread).collect();
    let is_settled = tracker.settle(slot, &all, all_since);
    Registered { slots, is_moving: !later.is_empty() || !is_settled, failure }
}

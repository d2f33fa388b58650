//! Registers the threads of a process for counting.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::{
    process::{MAX_THREADS, Thread},
    scan::Scan,
    shortage::is_shortage,
};
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

/// Registers the threads of a VM's process.
///
/// # Errors
///
/// Those about what the agent lacks: nothing is known of some thread.
pub(super) fn register(
    tracker: &dyn Tracker,
    slot: VmSlot,
    pid: u32,
    scan: &Scan,
) -> io::Result<Registered> {
    let mut slots = HashMap::new();
    let mut later: Vec<Thread> = Vec::new();
    let mut known: HashSet<u32> = scan.threads.iter().map(Thread::tid).collect();
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
            // Another search of all records would find none.
            if failure.is_some() && vcpu(thread).is_none() {
                continue;
            }
            match tracker.track_thread(slot, thread, vcpu(thread)) {
                Ok(thread_slot) => {
                    slots.insert(thread.tid(), thread_slot);
                }
                Err(TrackError::Gone { .. }) => {}
                Err(TrackError::Unread { source, .. }) if is_shortage(&source) => return Err(source),
                Err(TrackError::Unread { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        // There is no event for a thread that an unregistered thread started meanwhile.
        let unrecorded = tracker.unrecorded(slot);
        let mut others = scan.process.thread_ids().or_else(if_gone)?;
        others.retain(|tid| !known.contains(tid));
        let room = MAX_THREADS.saturating_sub(known.len());
        let are_all = others.len() <= room;
        others.truncate(room);
        let more = scan.process.hold_threads(others).or_else(if_gone)?;
        if more.is_empty() {
            all_since = Some(unrecorded).filter(|_| failure.is_none() && are_all);
            break;
        }
        known.extend(more.iter().map(Thread::tid));
        later.extend(more);
    }
    let all: Vec<&dyn HeldThread> =
        scan.threads.iter().chain(&later).map(|thread| thread as &dyn HeldThread).collect();
    let is_settled = tracker.settle(slot, &all, all_since);
    Ok(Registered { slots, is_moving: !later.is_empty() || !is_settled, failure })
}

/// A process that is gone has no threads.
fn if_gone<T: Default>(error: io::Error) -> io::Result<T> {
    if is_shortage(&error) { Err(error) } else { Ok(T::default()) }
}

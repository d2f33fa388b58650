//! Registers the threads of a process for counting.

use std::{
    collections::{HashMap, HashSet},
    io,
};

use super::{
    process::{MAX_LISTED, MAX_THREADS, Thread},
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
    /// Whether another scan is needed: threads started meanwhile, the record of one does not follow it yet, one has begun to exit, or the
    /// thread of a vCPU has come before an earlier one has ended.
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
    let numbers = numbers(scan);
    let (mut failure, mut is_early, mut is_leaving) = (None, false, false);
    let mut tried = 0;
    let mut all_since = None;
    for _ in 0..PASSES {
        let threads =
            if tried == 0 { &scan.threads[..] } else { &later[tried - scan.threads.len()..] };
        tried += threads.len();
        // The process is known by its first thread; vCPUs come before others if records run out.
        let vcpu = |thread: &Thread| numbers.get(&thread.tid()).copied();
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
                Err(TrackError::NotAlone { .. }) => is_early = true,
                Err(TrackError::Leaving { .. }) => is_leaving = true,
                Err(TrackError::Unread { source, .. }) if is_shortage(&source) => {
                    return Err(source);
                }
                Err(TrackError::Unread { .. }) => {}
                Err(error) => failure = Some(error),
            }
        }
        // There is no event for a thread that an unregistered thread started meanwhile.
        let unrecorded = tracker.unrecorded(slot);
        let mut others = scan.process.thread_ids(MAX_LISTED).or_else(if_gone)?;
        others.retain(|tid| !known.contains(tid));
        let room = MAX_THREADS.saturating_sub(known.len());
        let are_all = others.len() <= room;
        others.truncate(room);
        let more = scan.process.hold_threads(others).or_else(if_gone)?;
        if more.is_empty() {
            all_since = Some(unrecorded).filter(|_| failure.is_none() && are_all && !is_leaving);
            break;
        }
        known.extend(more.iter().map(Thread::tid));
        later.extend(more);
    }
    let all: Vec<&dyn HeldThread> =
        scan.threads.iter().chain(&later).map(|thread| thread as &dyn HeldThread).collect();
    let is_settled = tracker.settle(slot, &all, all_since);
    let is_moving = !later.is_empty() || !is_settled || is_early || is_leaving;
    Ok(Registered { slots, is_moving, failure })
}

/// The number of the vCPU that each thread runs. No row shows the second vCPU with a number, nor that of a thread which runs all vCPUs;
/// the programs report the moves of these threads, too.
fn numbers(scan: &Scan) -> HashMap<u32, u32> {
    const WITHOUT_ROW: u32 = u32::MAX;
    let mut known = HashSet::new();
    let shown = |&number: &u32| if known.insert(number) { number } else { WITHOUT_ROW };
    let stand_in = scan.runs.stand_in.map(|tid| (tid, WITHOUT_ROW));
    let numbers = scan.vcpus.values().map(shown);
    stand_in.into_iter().chain(scan.vcpus.keys().copied().zip(numbers)).collect()
}

/// A process that is gone has no threads.
fn if_gone<T: Default>(error: io::Error) -> io::Result<T> {
    if is_shortage(&error) { Err(error) } else { Ok(T::default()) }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, BTreeSet},
        path::Path,
        sync::{
            Arc, Barrier,
            atomic::{AtomicUsize, Ordering::Relaxed},
        },
        thread,
    };

    use super::{
        super::{command_line::Description, process::Process, scan::Runs},
        *,
    };
    use crate::{
        counters::{ImageRecordInfo, ImageSlot, VcpuPlace},
        counting::{Holder, Occupancy},
        inventory::VmProcess,
    };

    /// A VM with few records, or whose threads cannot be read.
    #[derive(Default)]
    struct Full {
        asked: AtomicUsize,
        room: usize,
        is_short: bool,
        are_leaving: bool,
    }

    impl Tracker for Full {
        fn track_vm_of(&self, _: u32, _: Holder) -> Result<VmSlot, TrackError> {
            Ok(VmSlot(1))
        }
        fn track_thread(
            &self,
            _: VmSlot,
            thread: &dyn HeldThread,
            _: Option<u32>,
        ) -> Result<ThreadSlot, TrackError> {
            let tid = thread.tid();
            if self.is_short {
                let source = rustix::io::Errno::MFILE.into();
                return Err(TrackError::Unread { tid, source });
            }
            if self.are_leaving {
                return Err(TrackError::Leaving { tid });
            }
            match self.asked.fetch_add(1, Relaxed) < self.room {
                true => Ok(ThreadSlot { record: 1, tid, start: 0 }),
                false => Err(TrackError::TooManyThreads { tid }),
            }
        }
        fn settle(&self, _: VmSlot, _: &[&dyn HeldThread], all_since: Option<u64>) -> bool {
            assert_eq!(all_since, None, "some thread has no record");
            true
        }
        fn unrecorded(&self, _: VmSlot) -> u64 {
            1
        }
        fn forget(&self, _: u32) {}
        fn waiting(&self) -> Vec<u32> {
            Vec::new()
        }
        fn occupancy(&self) -> Occupancy {
            Occupancy::default()
        }
        fn vcpu_place(&self, _: ThreadSlot) -> Option<VcpuPlace> {
            None
        }
        fn note_place(&self, _: ThreadSlot, _: u32) {}
        fn watch_vcpus(&self, _: VmSlot, _: bool) {}
        fn was_killed(&self, _: VmSlot) -> bool {
            false
        }
        fn untrack_vm(&self, _: VmSlot) {}
        fn unassigned_images(&self, _: VmSlot) -> Vec<ImageRecordInfo> {
            Vec::new()
        }
        fn allow_images(&self, _: VmSlot, _: usize) -> bool {
            false
        }
        fn limit_images(&self, _: VmSlot) {}
        fn free_image(&self, _: ImageSlot) {}
        fn tracked_vms(&self) -> Vec<(VmSlot, u32)> {
            Vec::new()
        }
    }

    /// A scan of this process, of which these threads run vCPUs.
    fn scan(vcpus: &[u32]) -> Scan {
        let process = Process::hold(Path::new("/proc"), std::process::id()).unwrap();
        let threads = process.hold_threads(process.thread_ids(MAX_LISTED).unwrap()).unwrap();
        Scan {
            process,
            vm: VmProcess::default(),
            threads,
            vcpus: vcpus.iter().copied().zip(0..).collect(),
            runs: Runs { rests: BTreeMap::new(), ..Runs::default() },
            described: Description::default(),
            parent: 0,
            is_own: None,
            creators: BTreeSet::new(),
            may_be_probe: false,
        }
    }

    #[test]
    fn one_thread_has_the_number_of_a_vcpu() {
        let mut scan = scan(&[]);
        // The process has two VMs.
        scan.vcpus = BTreeMap::from([(10, 0), (11, 1), (20, 0), (21, 2)]);
        let expected = HashMap::from([(10, 0), (11, 1), (20, u32::MAX), (21, 2)]);
        assert_eq!(numbers(&scan), expected);
        scan.vcpus.clear();
        scan.runs.stand_in = Some(30);
        assert_eq!(numbers(&scan), HashMap::from([(30, u32::MAX)]));
    }

    #[test]
    fn of_many_threads_without_a_record_one_is_tried_and_each_vcpu() {
        let end = Arc::new(Barrier::new(33));
        let others: Vec<_> = (0..32)
            .map(|_| {
                let end = Arc::clone(&end);
                thread::spawn(move || end.wait())
            })
            .collect();
        let (pid, own) = (std::process::id(), rustix::thread::gettid().as_raw_nonzero().get());
        let (slot, scan) = (VmSlot(1), scan(&[own.unsigned_abs()]));
        let tracker = Full { room: 4, ..Full::default() };
        let registered = register(&tracker, slot, pid, &scan).unwrap();
        assert!(scan.threads.len() > 32);
        assert_eq!((tracker.asked.into_inner(), registered.slots.len()), (5, 4));
        assert!(matches!(registered.failure, Some(TrackError::TooManyThreads { .. })));
        // The first thread, and the vCPU.
        let tracker = Full::default();
        drop(register(&tracker, slot, pid, &scan));
        assert_eq!(tracker.asked.into_inner(), 2);
        // What cannot be read for want of a descriptor has not ended.
        assert!(register(&Full { is_short: true, ..Full::default() }, slot, pid, &scan).is_err());
        // Those that have begun to exit have a row until another scan.
        let tracker = Full { are_leaving: true, ..Full::default() };
        let Registered { slots, is_moving, failure } =
            register(&tracker, slot, pid, &scan).unwrap();
        assert!(slots.is_empty() && is_moving && failure.is_none());
        end.wait();
        others.into_iter().for_each(|other| drop(other.join()));
    }
}

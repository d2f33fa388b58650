//! Which threads are counted: the agent's side of the thread-id map and of the records' ownership.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use kvmeter_common::{BLOCK_LEN, Owner, THREADS, VM_BLOCKS, VMS, VmRecord, word};
use nix::time::ClockId;
use rustix::{
    process::Pid,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity, sched_yield},
};

use super::{HeldThread, Schedstat, TrackError, Tracker};
use crate::counters::{
    ImageRecordInfo, ImageSlot, Records, ThreadSlot, VmSlot,
    mapped::{SharedThreadRecord, SharedVmRecord},
};

/// How often the sum of the threads that are gone is taken anew until nothing moved meanwhile.
const EXITED_TRIES: usize = 8;

/// How long a thread id's former owner may take from its release to its last switch, in looks.
const STALE_LOOKS: usize = 10_000;

/// Registers VMs and their threads in the records.
///
/// What is free is kept in order of age, so that a slot that somebody still holds in an old view of the
/// inventory is used again as late as can be.
#[derive(Debug)]
pub struct Registration<R> {
    records: R,
    free: Mutex<Free>,
}

#[derive(Debug)]
struct Free {
    vms: VecDeque<u16>,
    blocks: VecDeque<u16>,
}

impl<R: AsRef<Records>> Registration<R> {
    /// Takes over what is registered in the records. The programs saw the end of every thread while no agent
    /// ran, so a VM without a thread is gone, whoever has its process id now.
    #[must_use]
    pub fn adopt(records: R) -> Self {
        let adopted = Self::take_over(records);
        for (slot, _) in adopted.tracked_vms() {
            let maps = adopted.records();
            let mut threads = maps.threads_of(adopted.vm(slot));
            if threads.all(|(_, record)| record.owner.load(Ordering::Acquire) == 0) {
                adopted.untrack_vm(slot);
            }
        }
        adopted
    }

    fn take_over(records: R) -> Self {
        let maps = records.as_ref();
        let mut blocks = vec![false; THREADS / BLOCK_LEN];
        // Block 0 holds slot 0, which stands for none.
        blocks[0] = true;
        let mut vms = VecDeque::new();
        for (slot, vm) in (0..).zip(maps.vms.iter()).skip(1) {
            if vm.tgid.load(Ordering::Relaxed) == 0 {
                vms.push_back(slot);
                continue;
            }
            for block in blocks_of(vm) {
                if let Some(taken) = blocks.get_mut(usize::from(block)) {
                    *taken = true;
                }
            }
        }
        let blocks =
            (0..).zip(blocks).filter_map(|(block, taken)| (!taken).then_some(block)).collect();
        Self { records, free: Mutex::new(Free { vms, blocks }) }
    }

    fn records(&self) -> &Records {
        self.records.as_ref()
    }

    fn free(&self) -> MutexGuard<'_, Free> {
        // The lists are whole between any two statements.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self, slot: VmSlot) -> &SharedVmRecord {
        // Slots come from `adopt` and `track_vm` only, which give out valid ones; 0 is a record nobody uses.
        self.records().vms.get(usize::from(slot.0)).unwrap_or(&self.records().vms[0])
    }

    /// Takes a free record of the VM, with a further block if it has none.
    fn take_record(&self, vm_slot: VmSlot, tid: u32) -> Option<(u16, &SharedThreadRecord)> {
        let vm = self.vm(vm_slot);
        let owner = Owner::new(tid, vm_slot.0).0;
        loop {
            let taken = self.records().threads_of(vm).find(|(_, record)| {
                record.owner.compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            });
            if let Some((slot, record)) = taken {
                // A program on another CPU that had found the record may have written after it was freed.
                for cell in [&record.run, &record.wait, &record.start] {
                    cell.store(0, Ordering::Relaxed);
                }
                return Some((slot, record));
            }
            self.add_block(vm)?;
        }
    }

    fn add_block(&self, vm: &SharedVmRecord) -> Option<()> {
        let count = usize::try_from(vm.block_count.load(Ordering::Relaxed)).ok()?;
        let place = vm.blocks.get(count)?;
        place.store(self.free().blocks.pop_front()?, Ordering::Relaxed);
        vm.block_count.fetch_add(1, Ordering::Release);
        Some(())
    }

    /// Keeps a block's worth of records free, so that the kernel finds one for each thread that the VM
    /// starts until the agent comes round again.
    fn keep_spare(&self, vm: &SharedVmRecord) {
        let free = self
            .records()
            .threads_of(vm)
            .filter(|(_, record)| record.owner.load(Ordering::Relaxed) == 0);
        if free.count() < BLOCK_LEN / 2 {
            self.add_block(vm);
        }
    }

    /// Undoes the registration of a thread that has no record to hand over.
    fn release(&self, tid: u32, slot: u16, record: &SharedThreadRecord) {
        if let Some(entry) = self.records().slot_entry(tid) {
            // Fails when the kernel has given the id to another thread of a VM meanwhile.
            let _ = entry.compare_exchange(slot, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
        record.free();
    }

    /// Seeds what the kernel has counted so far, unless an event has come first.
    fn seed(record: &SharedThreadRecord, stat: Schedstat) {
        let unless_known = |cell: &AtomicU64, ns| {
            // The program's store overwrites the seed, the exchange never overwrites the program's.
            let _ = cell.compare_exchange(
                word::UNKNOWN,
                word::at_rest(ns),
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        };
        unless_known(&record.wait, stat.wait_ns);
        unless_known(&record.run, stat.run_ns);
    }

    /// Takes the CPU time of the threads that are gone from the difference between the process's clock and
    /// its live threads. The kernel brings all of them up to date at the same events, so between two such
    /// events the difference is exact.
    fn reckon_exited(&self, vm: &SharedVmRecord, threads: &[&dyn HeldThread]) {
        let tgid = vm.tgid.load(Ordering::Relaxed);
        let Some(clock) = i32::try_from(tgid)
            .ok()
            .and_then(|pid| nix::time::clock_getcpuclockid(nix::unistd::Pid::from_raw(pid)).ok())
        else {
            return;
        };
        for attempt in 0..EXITED_TRIES {
            let state = || {
                [&vm.handovers_begun, &vm.handovers_done, &vm.dying, &vm.exited]
                    .map(|cell| cell.load(Ordering::Acquire))
            };
            let before = state();
            let [begun, done, dying, exited] = before;
            let Some(process) = process_ns(clock) else { return };
            let live: Option<u64> =
                threads.iter().map(|thread| thread.schedstat().ok().map(|stat| stat.run_ns)).sum();
            let Some(live) = live else { return };
            let quiet = process_ns(clock) == Some(process) && begun == done && dying == 0;
            // A process that is never quiet for the length of this loop gets a value that is at most the
            // loop's time off; the kernel's own sum replaces it when the next thread ends.
            if (quiet || attempt + 1 == EXITED_TRIES) && state() == before {
                let reckoned = process.saturating_sub(live);
                let _ = vm.exited.compare_exchange(
                    exited,
                    reckoned,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                return;
            }
        }
    }
}

impl<R: AsRef<Records>> Tracker for Registration<R> {
    fn track_vm(&self, tgid: u32) -> Result<VmSlot, TrackError> {
        let known = self.tracked_vms().into_iter().find(|&(_, pid)| pid == tgid);
        let slot = match known {
            Some((slot, _)) => slot,
            None => VmSlot(self.free().vms.pop_front().ok_or(TrackError::TooManyVms(VMS - 1))?),
        };
        let vm = self.vm(slot);
        vm.tgid.store(tgid, Ordering::Release);
        // From here on the kernel reports new threads again: those that the scan after this does not see.
        vm.flags.fetch_and(!VmRecord::PENDING_THREADS, Ordering::AcqRel);
        Ok(slot)
    }

    fn track_thread(
        &self,
        vm: VmSlot,
        thread: &dyn HeldThread,
        vcpu: Option<u32>,
    ) -> Result<ThreadSlot, TrackError> {
        let tid = thread.tid();
        let entry = self.records().slot_entry(tid).ok_or(TrackError::BeyondPidMax { tid })?;
        let mut known = entry.load(Ordering::Acquire);
        for _ in 0..STALE_LOOKS {
            let record = &self.records().threads[usize::from(known)];
            let owner = Owner(record.owner.load(Ordering::Acquire));
            if known == 0 || !owner.has(Owner::DYING) {
                break;
            }
            // The id's former owner is about to leave its CPU for the last time.
            std::hint::spin_loop();
            known = entry.load(Ordering::Acquire);
        }
        if known != 0 {
            let record = &self.records().threads[usize::from(known)];
            let owner = Owner(record.owner.load(Ordering::Acquire));
            if owner.tid() == tid && owner.vm_slot() == vm.0 && !owner.has(Owner::DYING) {
                if let Some(id) = vcpu {
                    record.vcpu.store(id, Ordering::Relaxed);
                    record.owner.fetch_or(Owner::VCPU, Ordering::AcqRel);
                }
                return Ok(ThreadSlot(known));
            }
            if owner.tid() == tid {
                self.release(tid, known, record);
            } else {
                let _ = entry.compare_exchange(known, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        let (slot, record) = self.take_record(vm, tid).ok_or(TrackError::TooManyThreads { tid })?;
        if let Some(id) = vcpu {
            record.vcpu.store(id, Ordering::Relaxed);
            record.owner.fetch_or(Owner::VCPU, Ordering::AcqRel);
        }
        if entry.compare_exchange(0, slot, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // The kernel was first: the thread was made after the scan began.
            record.free();
            return self.track_thread(vm, thread, vcpu);
        }
        // From here on its end is seen. Had it ended before, the id may be another thread's by now; reading
        // through the held thread tells.
        let (Ok(state), Ok(stat)) = (thread.run_state(), thread.schedstat()) else {
            self.release(tid, slot, record);
            return Err(TrackError::Gone { tid });
        };
        if !state.runnable {
            Self::seed(record, stat);
        }
        Ok(ThreadSlot(slot))
    }

    fn settle(&self, vm: VmSlot, threads: &[&dyn HeldThread]) {
        let unknown = |thread: &dyn HeldThread| {
            let slot = self.records().slot_entry(thread.tid())?.load(Ordering::Acquire);
            let record = self.records().threads.get(usize::from(slot))?;
            (slot != 0 && record.run.load(Ordering::Acquire) == word::UNKNOWN).then_some(record)
        };
        let mut cpus = CpuVisit::new();
        for &thread in threads {
            if unknown(thread).is_some()
                && let Ok(state) = thread.run_state()
                && !state.is_real_time
            {
                cpus.visit(state.cpu);
            }
            if let Some(record) = unknown(thread)
                && let Ok(stat) = thread.schedstat()
            {
                Self::seed(record, stat);
            }
        }
        drop(cpus);
        let vm = self.vm(vm);
        self.keep_spare(vm);
        if vm.exited.load(Ordering::Acquire) == 0 {
            self.reckon_exited(vm, threads);
        }
    }

    fn untrack_vm(&self, vm: VmSlot) {
        let cells = self.vm(vm);
        if cells.tgid.load(Ordering::Acquire) == 0 {
            return;
        }
        for (slot, record) in self.records().threads_of(cells) {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            if owner.0 != 0 {
                self.release(owner.tid(), slot, record);
            }
        }
        for image in self.records().image_records() {
            if image.vm() == vm {
                self.records().free_image(image.slot);
            }
        }
        let blocks: Vec<u16> = blocks_of(cells).collect();
        cells.block_count.store(0, Ordering::Release);
        for cell in [
            &cells.exited,
            &cells.handovers_begun,
            &cells.handovers_done,
            &cells.dying,
            &cells.high_water,
            &cells.unrecorded,
        ] {
            cell.store(0, Ordering::Relaxed);
        }
        cells.flags.store(0, Ordering::Relaxed);
        cells.tgid.store(0, Ordering::Release);
        let mut free = self.free();
        free.blocks.extend(blocks);
        free.vms.push_back(vm.0);
    }

    fn unassigned_images(&self, vm: VmSlot) -> Vec<ImageRecordInfo> {
        let taken = self.records().image_records().into_iter();
        taken.filter(|image| image.vm() == vm && image.is_unassigned()).collect()
    }

    fn limit_images(&self, vm: VmSlot) {
        self.vm(vm).flags.fetch_or(VmRecord::NO_IMAGES, Ordering::AcqRel);
    }

    fn free_image(&self, image: ImageSlot) {
        self.records().free_image(image);
    }

    fn tracked_vms(&self) -> Vec<(VmSlot, u32)> {
        (0..)
            .zip(self.records().vms.iter())
            .skip(1)
            .filter_map(|(slot, vm)| match vm.tgid.load(Ordering::Acquire) {
                0 => None,
                tgid => Some((VmSlot(slot), tgid)),
            })
            .collect()
    }
}

fn blocks_of(vm: &SharedVmRecord) -> impl Iterator<Item = u16> {
    let count = usize::try_from(vm.block_count.load(Ordering::Acquire)).unwrap_or(usize::MAX);
    vm.blocks[..count.min(VM_BLOCKS)].iter().map(|block| block.load(Ordering::Relaxed))
}

fn process_ns(clock: ClockId) -> Option<u64> {
    let time = clock.now().ok()?;
    Some(u64::try_from(time.tv_sec()).ok()? * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

/// Brings the calling thread to the CPUs of others: the switch that this makes there is the event that tells
/// how long a thread that never sleeps has run. The CPUs that the calling thread may use are as before when
/// this is dropped.
struct CpuVisit {
    home: Option<CpuSet>,
    moved: bool,
}

impl CpuVisit {
    fn new() -> Self {
        Self { home: sched_getaffinity(None::<Pid>).ok(), moved: false }
    }

    fn visit(&mut self, cpu: u32) {
        let cpu = cpu as usize;
        if self.home.is_none() || cpu >= CpuSet::MAX_CPU {
            return;
        }
        let mut there = CpuSet::new();
        there.set(cpu);
        // Fails where a cpuset forbids that CPU: the value comes with the next switch then.
        if sched_setaffinity(None::<Pid>, &there).is_ok() {
            self.moved = true;
            sched_yield();
        }
    }
}

impl Drop for CpuVisit {
    fn drop(&mut self) {
        if let (true, Some(home)) = (self.moved, &self.home) {
            let _ = sched_setaffinity(None::<Pid>, home);
        }
    }
}

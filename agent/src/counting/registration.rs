//! Registers VMs and threads: the agent's side of the thread-id map and of the ownership of records.

mod adoption;
#[cfg(test)]
mod tests;
mod vcpus;

use std::{
    collections::HashSet,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering, fence},
    },
    time::{Duration, Instant},
};

use kvmeter_common::{BLOCK_LEN, Owner, VM_BLOCKS, VmRecord, word};
use rustix::thread::sched_yield;

use super::{
    HeldThread, Holder, Occupancy, Schedstat, TrackError, Tracker, cpu_visit::CpuVisits,
    free_records::FreeRecords,
};
use crate::counters::{
    ImageRecordInfo, ImageSlot, Records, ThreadSlot, VcpuPlace, VmSlot,
    mapped::{SharedThreadRecord, SharedVmRecord},
    records::{monotonic_ns, process_ns},
};

/// Attempts to compute the CPU time of exited threads while no thread is switched.
const EXITED_TRIES: usize = 8;

/// Time in which a CPU on which a thread runs has a tick, at 250 Hz or more, if it has one at all.
const TICK: Duration = Duration::from_millis(5);

/// Time for which the threads of one VM are visited in one scan. Visits take long only where others want the CPU, too: there the next
/// switch comes soon.
const VISITS: Duration = Duration::from_millis(50);

/// Attempts to read the entry of a thread id while its owner is on its way to its last switch: some ten microseconds. A thread may take
/// as long as it likes, and a VM may have thousands of such threads.
const STALE_TRIES: usize = 1_000;

/// Registers VMs and their threads in the records.
#[derive(Debug)]
pub struct Registration<R> {
    records: R,
    free: Mutex<FreeRecords>,
    visits: CpuVisits,
}

impl<R: AsRef<Records>> Registration<R> {
    fn records(&self) -> &Records {
        self.records.as_ref()
    }

    fn free(&self) -> MutexGuard<'_, FreeRecords> {
        // A panic cannot leave the lists inconsistent.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vm(&self, slot: VmSlot) -> &SharedVmRecord {
        // Slots come from `adopt` and `track_vm` only, so they are valid; record 0 is unused.
        self.records().vms.get(usize::from(slot.0)).unwrap_or(&self.records().vms[0])
    }

    /// Claims a free record of the VM, and adds a block of records if all are in use.
    fn claim_record(&self, vm_slot: VmSlot, tid: u32) -> Option<(u16, &SharedThreadRecord)> {
        let vm = self.vm(vm_slot);
        let owner = Owner::new(tid, vm_slot.0).0;
        loop {
            // A look costs less than an exchange: a VM may have thousands of records in use.
            let taken = self.records().threads_of(vm).find(|(_, record)| {
                record.owner.load(Ordering::Relaxed) == 0
                    && record
                        .owner
                        .compare_exchange(0, owner, Ordering::AcqRel, Ordering::Relaxed)
                        .is_ok()
            });
            if let Some((slot, record)) = taken {
                // A program on another CPU may have looked the record up before it was freed, and written after.
                for cell in [&record.run, &record.wait, &record.start] {
                    cell.store(0, Ordering::Relaxed);
                }
                return Some((slot, record));
            }
            self.add_block(vm_slot)?;
        }
    }

    fn add_block(&self, slot: VmSlot) -> Option<()> {
        let vm = self.vm(slot);
        let count = usize::try_from(vm.block_count.load(Ordering::Relaxed)).ok()?;
        let place = vm.blocks.get(count)?;
        place.store(self.free().block(slot)?, Ordering::Relaxed);
        vm.block_count.fetch_add(1, Ordering::Release);
        Some(())
    }

    /// Keeps some records of the VM free, so that the kernel finds one for each thread that the VM starts before the next
    /// scan.
    fn keep_spare(&self, slot: VmSlot) {
        let vm = self.vm(slot);
        let free = self
            .records()
            .threads_of(vm)
            .filter(|(_, record)| record.owner.load(Ordering::Relaxed) == 0);
        if free.count() < BLOCK_LEN / 2 {
            self.add_block(slot);
        }
    }

    /// Takes the record of a thread that is no vCPU for one that is. The VM's CPU time is the kernel's own sum from here on.
    fn claim_of_another(&self, vm_slot: VmSlot, tid: u32) -> Option<(u16, &SharedThreadRecord)> {
        let vm = self.vm(vm_slot);
        let tgid = tgid_of(vm);
        let (slot, record, owner) = self.records().threads_of(vm).find_map(|(slot, record)| {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            let is_spared = owner.0 & (Owner::VCPU | Owner::DYING) != 0 || owner.tid() == tgid;
            (owner.is_of_thread() && !is_spared).then_some((slot, record, owner))
        })?;
        vm.unrecorded.fetch_add(1, Ordering::AcqRel);
        self.release(owner.tid(), slot, record);
        self.claim_record(vm_slot, tid)
    }

    /// Undoes the registration of a thread that has no record to hand over.
    fn release(&self, tid: u32, slot: u16, record: &SharedThreadRecord) {
        self.forget_id(tid, slot);
        // Else the thread has handed its record over.
        if let Some(owner) = record.take(tid) {
            record.free();
            self.stop_dying(owner);
        }
    }

    /// Clears the entry of a thread id, if it has this slot.
    fn forget_id(&self, tid: u32, slot: u16) {
        if let Some(entry) = self.records().slot_entry(tid) {
            // Fails if the id was reused for another thread of a VM.
            let _ = entry.compare_exchange(slot, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The programs count a dying thread until it hands its record over. The record with this owner word was taken first.
    fn stop_dying(&self, owner: Owner) {
        if owner.is_dying() {
            self.vm(VmSlot(owner.vm_slot())).dying.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Sets flags of the owner word of a record that is entered. Returns false if the thread has handed the record over: it is free,
    /// or another thread's.
    fn mark(record: &SharedThreadRecord, vm: VmSlot, tid: u32, flags: u64) -> bool {
        let marked = |owner: u64| {
            let of = Owner(owner);
            (of.tid() == tid && of.vm_slot() == vm.0).then_some(owner | flags)
        };
        record.owner.fetch_update(Ordering::AcqRel, Ordering::Acquire, marked).is_ok()
    }

    /// Seeds the record with the kernel's counters, unless an event came first.
    fn seed(record: &SharedThreadRecord, stat: Schedstat) {
        let unless_known = |cell: &AtomicU64, ns| {
            // The program's store overwrites the seed; the exchange never overwrites the program's store.
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

    /// Whether the record follows the thread. A seed taken while the thread runs is too low until the next switch. If no
    /// switch came and the kernel shows more CPU time than the record, the thread has been on its CPU throughout, and the
    /// record is set to running.
    fn is_known(record: &SharedThreadRecord, thread: &dyn HeldThread) -> bool {
        let load = |cell: &AtomicU64| cell.load(Ordering::Acquire);
        let word = load(&record.run);
        let has_switched = word::is_running(word)
            || word::is_running(load(&record.wait))
            || load(&record.switches_in) != 0
            || load(&record.preemptions) != 0;
        if has_switched {
            return true;
        }
        let (Ok(stat), Ok(state)) = (thread.schedstat(), thread.run_state()) else { return true };
        let now = monotonic_ns();
        if !state.runnable {
            return true;
        }
        if word == word::UNKNOWN || stat.run_ns <= word::shows(word, now) {
            return false;
        }
        let running = word::running(stat.run_ns, now);
        let _ = record.run.compare_exchange(word, running, Ordering::AcqRel, Ordering::Relaxed);
        true
    }

    /// Seeds the CPU time of the exited threads: the process's CPU clock minus its live threads. The kernel updates all of
    /// these at the same events, so between two events the difference is exact. Returns `false` if another thread lives, whose
    /// time would be taken for that of exited ones: it was started after `threads` were listed.
    fn seed_exited(&self, vm: &SharedVmRecord, threads: &[&dyn HeldThread]) -> bool {
        let tgid = vm.tgid.load(Ordering::Relaxed);
        let listed: HashSet<u32> = threads.iter().map(|thread| thread.tid()).collect();
        let has_others = || {
            let owners = self.records().threads_of(vm);
            let mut owners = owners.map(|(_, record)| Owner(record.owner.load(Ordering::Acquire)));
            owners.any(|owner| owner.is_of_thread() && !listed.contains(&owner.tid()))
        };
        for attempt in 0..EXITED_TRIES {
            let state = || {
                [&vm.handovers_begun, &vm.handovers_done, &vm.dying, &vm.exited]
                    .map(|cell| cell.load(Ordering::Acquire))
            };
            let before = state();
            let [begun, done, dying, exited] = before;
            let Some(process) = process_ns(tgid) else { return true };
            let live: Option<u64> =
                threads.iter().map(|thread| thread.schedstat().ok().map(|stat| stat.run_ns)).sum();
            // One has ended since, or cannot be read: the next scan lists the threads again.
            let Some(live) = live else { return false };
            let quiet = process_ns(tgid) == Some(process) && begun == done && dying == 0;
            if has_others() {
                return false;
            }
            // A process that is never quiet during the loop gets a value that is off by at most the duration of the
            // loop; the kernel's own sum replaces it when the next thread ends.
            if (quiet || attempt + 1 == EXITED_TRIES) && state() == before {
                let difference = process.saturating_sub(live);
                let _ = vm.exited.compare_exchange(
                    exited,
                    difference,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                );
                return true;
            }
        }
        true
    }
}

impl<R: AsRef<Records>> Tracker for Registration<R> {
    fn track_vm_of(&self, tgid: u32, holder: Holder) -> Result<VmSlot, TrackError> {
        let slot = self.free().vm(tgid, holder)?;
        let vm = self.vm(slot);
        let is_new = vm.tgid.load(Ordering::Acquire) != u64::from(tgid);
        if is_new {
            vm.clear();
        }
        self.records().set_holder(slot, holder);
        if is_new {
            self.records().allow_new_images(slot, 0);
            vm.tgid.store(u64::from(tgid), Ordering::Release);
        }
        // The kernel reports new threads again, before the scan: it may miss later ones.
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
        let entry = self.records().slot_entry(tid).ok_or_else(|| {
            self.vm(vm).unrecorded.fetch_add(1, Ordering::AcqRel);
            TrackError::BeyondPidMax { tid }
        })?;
        let mut known = entry.load(Ordering::Acquire);
        for _ in 0..STALE_TRIES {
            let record = &self.records().threads[usize::from(known)];
            let owner = Owner(record.owner.load(Ordering::Acquire));
            if known == 0 || !owner.is_dying() {
                break;
            }
            // The record's thread, this one or an earlier one with its id, is about to make its last switch.
            std::hint::spin_loop();
            known = entry.load(Ordering::Acquire);
        }
        if known != 0 {
            // The record may be that of another thread, which got the id after the end of this one.
            thread.schedstat().map_err(|source| TrackError::of(tid, source))?;
            let record = &self.records().threads[usize::from(known)];
            let owner = Owner(record.owner.load(Ordering::Acquire));
            let is_its = owner.tid() == tid && owner.vm_slot() == vm.0;
            if is_its && owner.is_dying() {
                // The record counts this thread to its end. Or the thread has the id of one whose last switch is about to come: the next
                // scan gives it a record.
                return Err(TrackError::Leaving { tid });
            }
            if is_its {
                vcpu.map_or(Ok(()), |vcpu| self.assign(vm, tid, record, vcpu))?;
                return Ok(slot_of(known, record, tid));
            }
            if owner.tid() == tid {
                let ran = word::shows(record.run.load(Ordering::Acquire), monotonic_ns());
                self.close(tid, known, record, ran);
            } else {
                let _ = entry.compare_exchange(known, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
        let claimed = self
            .claim_record(vm, tid)
            .or_else(|| vcpu.and_then(|_| self.claim_of_another(vm, tid)));
        let (slot, record) = claimed.ok_or_else(|| {
            self.vm(vm).unrecorded.fetch_add(1, Ordering::AcqRel);
            TrackError::TooManyThreads { tid }
        })?;
        // A thread that is not alone is counted, without being the vCPU's.
        let assigned = vcpu.map_or(Ok(()), |vcpu| self.assign(vm, tid, record, vcpu));
        if entry.compare_exchange(0, slot, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // The kernel was first: the thread was created after the scan began.
            record.free();
            return self.track_thread(vm, thread, vcpu);
        }
        // The programs see its end from here on. It may have ended before, and its id been reused: then reading through
        // the held thread fails.
        let read = thread.run_state().and_then(|state| Ok((state, thread.schedstat()?)));
        let (state, stat) = match read {
            Ok(read) => read,
            Err(source) => {
                self.release(tid, slot, record);
                return Err(TrackError::of(tid, source));
            }
        };
        if state.has_ended {
            if u64::from(tid) != self.vm(vm).tgid.load(Ordering::Relaxed) {
                self.release(tid, slot, record);
                return Err(TrackError::Gone { tid });
            }
            if !Self::mark(record, vm, tid, Owner::DYING | Owner::ENDED) {
                return Err(TrackError::Gone { tid });
            }
        }
        if !state.runnable {
            Self::seed(record, stat);
        }
        assigned?;
        Ok(slot_of(slot, record, tid))
    }

    fn unrecorded(&self, vm: VmSlot) -> u64 {
        self.vm(vm).unrecorded.load(Ordering::Acquire)
    }

    fn settle(&self, vm: VmSlot, threads: &[&dyn HeldThread], unrecorded: Option<u64>) -> bool {
        let record_of = |thread: &dyn HeldThread| {
            let slot = self.records().slot_entry(thread.tid())?.load(Ordering::Acquire);
            let record = self.records().threads.get(usize::from(slot))?;
            (slot != 0).then_some(record)
        };
        let unknown = |thread: &dyn HeldThread| {
            record_of(thread).filter(|record| record.run.load(Ordering::Acquire) == word::UNKNOWN)
        };
        let holder = self.free().holder(vm);
        let visits_end = Instant::now() + VISITS;
        for &thread in threads {
            if unknown(thread).is_some() && Instant::now() < visits_end {
                self.visits.visit(holder, thread.place());
            }
            if let Some(record) = unknown(thread)
                && let Ok(stat) = thread.schedstat()
            {
                Self::seed(record, stat);
            }
        }
        // Until the next tick of the CPU of each thread that was seeded while it ran.
        let deadline = Instant::now() + TICK;
        let is_settled = loop {
            let is_known = |thread: &&dyn HeldThread| {
                record_of(*thread).is_none_or(|record| Self::is_known(record, *thread))
            };
            let are_known = threads.iter().all(is_known);
            if are_known || Instant::now() > deadline {
                break are_known;
            }
            sched_yield();
        };
        self.keep_spare(vm);
        let vm = self.vm(vm);
        if let Some(unrecorded) = unrecorded
            && vm.recorded.load(Ordering::Acquire) != unrecorded
        {
            if !self.seed_exited(vm, threads) {
                return false;
            }
            vm.recorded.store(unrecorded, Ordering::Release);
        }
        is_settled
    }

    fn vcpu_place(&self, vcpu: ThreadSlot) -> Option<VcpuPlace> {
        self.records().vcpu_place(vcpu)
    }

    fn note_place(&self, vcpu: ThreadSlot, place: u32) {
        self.records().note_place(vcpu, place);
    }

    fn watch_vcpus(&self, vm: VmSlot, halts_outside: bool) {
        let cells = self.vm(vm);
        cells.flags.fetch_and(!VmRecord::PENDING_VCPUS, Ordering::AcqRel);
        let halts = if halts_outside { Owner::HALTS_OUTSIDE } else { 0 };
        let watched = |owner: u64| {
            let flags = owner & !Owner::HALTS_OUTSIDE | Owner::WATCHED | halts;
            Owner(owner).has(Owner::VCPU).then_some(flags)
        };
        for (_, record) in self.records().threads_of(cells) {
            // Fails for a thread that is no vCPU's.
            let _ = record.owner.fetch_update(Ordering::AcqRel, Ordering::Acquire, watched);
        }
    }

    fn was_killed(&self, vm: VmSlot) -> bool {
        self.vm(vm).flags.load(Ordering::Acquire) & VmRecord::KILLED != 0
    }

    fn untrack_vm(&self, vm: VmSlot) {
        let cells = self.vm(vm);
        let tgid = tgid_of(cells);
        if tgid == 0 {
            return;
        }
        // A program that gives a thread a record looks at the word afterwards: either it sees this, or the record is found below.
        cells.tgid.fetch_or(VmRecord::UNTRACKED, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        for (slot, record) in self.records().threads_of(cells) {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            if owner.is_of_thread() {
                self.release(owner.tid(), slot, record);
            }
        }
        self.free_kept(cells);
        self.records().free_images_of_vm(vm);
        let blocks: Vec<u16> = blocks_of(cells).collect();
        cells.block_count.store(0, Ordering::Release);
        cells.clear();
        cells.tgid.store(0, Ordering::Release);
        self.free().free(vm, tgid, blocks);
    }

    fn forget(&self, tgid: u32) {
        self.free().forget(tgid);
    }

    fn waiting(&self) -> Vec<u32> {
        self.free().waiting()
    }

    fn occupancy(&self) -> Occupancy {
        self.free().occupancy()
    }

    fn unassigned_images(&self, vm: VmSlot) -> Vec<ImageRecordInfo> {
        let mut images = self.records().images_of_vm(vm);
        images.retain(ImageRecordInfo::is_unassigned);
        images
    }

    fn allow_images(&self, vm: VmSlot, unassigned: usize) -> bool {
        self.records().allow_new_images(vm, unassigned)
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
            .filter_map(|(slot, vm)| match tgid_of(vm) {
                0 => None,
                tgid => Some((VmSlot(slot), tgid)),
            })
            .collect()
    }
}

fn slot_of(slot: u16, record: &SharedThreadRecord, tid: u32) -> ThreadSlot {
    ThreadSlot { record: slot, tid, start: record.start.load(Ordering::Relaxed) }
}

fn blocks_of(vm: &SharedVmRecord) -> impl Iterator<Item = u16> {
    let count = usize::try_from(vm.block_count.load(Ordering::Acquire)).unwrap_or(usize::MAX);
    vm.blocks[..count.min(VM_BLOCKS)].iter().map(|block| block.load(Ordering::Relaxed))
}

/// The process id of a VM, also while its records are freed; 0 = the record is free.
fn tgid_of(vm: &SharedVmRecord) -> u32 {
    u32::try_from(vm.tgid.load(Ordering::Acquire) & !VmRecord::UNTRACKED).unwrap_or(0)
}

/// Whether the records of a VM were being freed when an agent ended.
fn is_untracked(vm: &SharedVmRecord) -> bool {
    vm.tgid.load(Ordering::Acquire) & VmRecord::UNTRACKED != 0
}

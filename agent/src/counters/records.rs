//! Reads the records that the BPF programs write.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering, fence},
};

use kvmeter_common::{
    BLOCK_LEN, DEVICE_BUCKETS, LAYOUT, Owner, SLOTS_PER_ELEMENT, VM_BLOCKS, Vcpu, word,
};
use rustix::time::{ClockId, clock_gettime};

use super::{
    CpuMask, DiskIo, ImageSlot, Readings, Requests, ThreadReading, ThreadSlot, VmSlot,
    image_index::ImageIndex,
    mapped::{
        Mapped, SharedDevices, SharedImageRecord, SharedMeta, SharedSlots, SharedThreadRecord,
        SharedVmRecord,
    },
};
use crate::probe::{Probe, Sizes};

/// Retries of a read that raced with a writer. A writer would have to switch a thread this often within some hundred
/// nanoseconds.
pub(super) const TRIES: usize = 64;

/// The mapped records.
#[derive(Debug)]
pub struct Records {
    pub(crate) tid_slot: Mapped<SharedSlots>,
    pub(crate) threads: Mapped<SharedThreadRecord>,
    pub(crate) vms: Mapped<SharedVmRecord>,
    pub(crate) meta: Mapped<SharedMeta>,
    pub(crate) images: Mapped<SharedImageRecord>,
    pub(super) devices: Mapped<SharedDevices>,
    /// Secret of the hash of images.
    pub(super) image_secret: u64,
    pub(super) image_index: ImageIndex,
    /// Sequence counter of [`merge_images`](Self::merge_images) (a seqlock): odd while counts are being merged.
    pub(super) merge_seq: AtomicU64,
}

impl Records {
    /// Maps the records of a probe.
    ///
    /// # Errors
    ///
    /// Those of `mmap(2)`.
    pub fn map(probe: &Probe) -> io::Result<Self> {
        let elements = probe.tid_slot.info().map_err(io::Error::other)?.max_entries();
        let meta = Mapped::<SharedMeta>::new(probe.meta.fd(), 1)?;
        let records = Self {
            tid_slot: Mapped::new(probe.tid_slot.fd(), elements as usize)?,
            threads: Mapped::new(probe.threads.fd(), probe.sizes.threads)?,
            vms: Mapped::new(probe.vms.fd(), probe.sizes.vms)?,
            images: Mapped::new(probe.images.fd(), probe.sizes.images)?,
            devices: Mapped::new(probe.devices.fd(), DEVICE_BUCKETS)?,
            image_secret: meta[0].secret.load(Ordering::Relaxed),
            meta,
            image_index: ImageIndex::new(probe.sizes.images),
            merge_seq: AtomicU64::new(0),
        };
        records.restore_device_users();
        Ok(records)
    }

    /// Sizes of the tables.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        Sizes { vms: self.vms.len(), threads: self.threads.len(), images: self.images.len() }
    }

    /// Empty records that no program writes.
    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Self::in_memory_with(kvmeter_common::IMAGES)
    }

    /// The same, with this number of image records.
    #[cfg(test)]
    pub(crate) fn in_memory_with(images: usize) -> Self {
        fn mapped<T: super::mapped::Shared>(len: usize) -> Mapped<T> {
            let file = tempfile::tempfile().unwrap();
            file.set_len((size_of::<T>() * len).try_into().unwrap()).unwrap();
            Mapped::new(&file, len).unwrap()
        }
        Self {
            tid_slot: mapped(1 << 20),
            threads: mapped(kvmeter_common::THREADS),
            vms: mapped(kvmeter_common::VMS),
            meta: mapped(1),
            images: mapped(images),
            devices: mapped(DEVICE_BUCKETS),
            image_secret: 0x0123_4567_89ab_cdef,
            image_index: ImageIndex::new(images),
            merge_seq: AtomicU64::new(0),
        }
    }

    /// Number of events that the ring buffer had no room for, since the maps were created.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.meta[0].events_lost.load(Ordering::Relaxed)
    }

    /// Number of threads for which no record was free, since the maps were created.
    #[must_use]
    pub fn unrecorded(&self) -> u64 {
        self.meta[0].unrecorded.load(Ordering::Relaxed)
    }

    /// Whether the record belongs to the VM with this process id.
    #[must_use]
    pub fn is_vm(&self, slot: VmSlot, pid: u32) -> bool {
        self.vms
            .get(usize::from(slot.0))
            .is_some_and(|vm| vm.tgid.load(Ordering::Acquire) == u64::from(pid))
    }

    /// Whether the hooks of disks know the process of a VM: by the record of its first thread. It has none while the table of
    /// threads is full, and if its id is beyond the `pid_max` at load time.
    pub(crate) fn hooks_know(&self, slot: VmSlot, pid: u32) -> bool {
        let known = self.slot_entry(pid).map_or(0, |entry| entry.load(Ordering::Acquire));
        let record = self.threads.get(usize::from(known)).filter(|_| known != 0);
        let owner = record.map(|record| Owner(record.owner.load(Ordering::Acquire)));
        owner.is_some_and(|owner| owner.tid() == pid && owner.vm_slot() == slot.0)
    }

    /// The map entry with the slot of a thread id; `None` = the id is beyond the `pid_max` at load time.
    pub(crate) fn slot_entry(&self, tid: u32) -> Option<&std::sync::atomic::AtomicU16> {
        let tid = tid as usize;
        Some(&self.tid_slot.get(tid / SLOTS_PER_ELEMENT)?[tid % SLOTS_PER_ELEMENT])
    }

    /// The record of a thread; `None` = the record is free, or another thread's.
    pub(super) fn record_of(&self, thread: ThreadSlot) -> Option<&SharedThreadRecord> {
        self.threads.get(usize::from(thread.record)).filter(|record| is_of(record, thread))
    }

    /// The record that keeps the counts of a vCPU's earlier threads; `None` = there is none, or this is no vCPU's record.
    fn earlier_of(&self, owner: Owner, record: &SharedThreadRecord) -> Option<&SharedThreadRecord> {
        if !owner.has(Owner::VCPU) {
            return None;
        }
        let slot = Vcpu(record.vcpu.load(Ordering::Acquire)).earlier();
        self.threads.get(usize::from(slot)).filter(|_| slot != 0)
    }

    /// The VM's thread records, free ones included.
    pub(crate) fn threads_of<'a>(
        &'a self,
        vm: &'a SharedVmRecord,
    ) -> impl Iterator<Item = (u16, &'a SharedThreadRecord)> {
        let count = usize::try_from(vm.block_count.load(Ordering::Acquire)).unwrap_or(usize::MAX);
        vm.blocks[..count.min(VM_BLOCKS)].iter().flat_map(move |block| {
            let first = usize::from(block.load(Ordering::Relaxed)) * BLOCK_LEN;
            (first..first + BLOCK_LEN)
                .filter_map(|slot| Some((u16::try_from(slot).ok()?, self.threads.get(slot)?)))
        })
    }

    /// CPU time in ns of a thread at the time `now`, and no less than what a reader was given for it. A thread that was switched in
    /// after `now` is some nanoseconds short; the VM's high-water mark covers that.
    fn counted(&self, owner: Owner, thread: &SharedThreadRecord, now: u64) -> u64 {
        let given = match self.earlier_of(owner, thread) {
            None => thread.high_water.load(Ordering::Acquire),
            Some(kept) => given_beyond(kept),
        };
        shows(thread.run.load(Ordering::Acquire), now).max(given)
    }

    /// CPU time in ns of a VM's vCPUs at the time `now`, with that of their threads that have ended.
    fn sum_of_vcpus(&self, vm: &SharedVmRecord, now: u64) -> u64 {
        let of_record = |(_, record): (_, &SharedThreadRecord)| {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            match owner.is_of_thread() {
                true if owner.has(Owner::VCPU) => self.counted(owner, record, now),
                false if owner.is_kept() => kept_ns(record),
                _ => 0,
            }
        };
        self.threads_of(vm).map(of_record).fold(0, u64::wrapping_add)
    }

    /// CPU time in ns of a VM's recorded and exited threads, now. Never less than the sum of what was returned for the vCPUs.
    fn vm_sum(&self, vm: &SharedVmRecord) -> u64 {
        let mut sum = 0;
        for _ in 0..TRIES {
            let done = vm.handovers_done.load(Ordering::Acquire);
            if vm.handovers_begun.load(Ordering::Acquire) != done {
                std::hint::spin_loop();
                continue;
            }
            let now = monotonic_ns();
            sum = vm.exited.load(Ordering::Acquire);
            let mut has_kept = false;
            for (_, thread) in self.threads_of(vm) {
                let owner = Owner(thread.owner.load(Ordering::Acquire));
                // A program that had found the record before it was freed may have written to it.
                if !owner.is_of_thread() {
                    has_kept |= owner.is_kept();
                    continue;
                }
                sum = sum.wrapping_add(self.counted(owner, thread, now));
            }
            if has_kept {
                // The kernel's own sum over exited threads lacks their last microseconds.
                sum = sum.max(self.sum_of_vcpus(vm, now));
            }
            fence(Ordering::Acquire);
            if vm.handovers_begun.load(Ordering::Relaxed) == done {
                break;
            }
        }
        sum
    }

    /// CPU time in ns of a VM's process. `None` = the process is gone.
    ///
    /// While a thread has no record, this is the kernel's own sum over the process, which lacks what a running thread has done
    /// since the last tick of its CPU or, on one without (`nohz_full=`), since the last second (`sched_tick_remote()` of the kernel's
    /// sched/core.c); or the sum over the records, if that is more.
    fn process_sum(&self, vm: &SharedVmRecord) -> Option<u64> {
        let sum = self.vm_sum(vm);
        if vm.is_complete() {
            return Some(sum);
        }
        Some(process_ns(vm.tgid.load(Ordering::Relaxed))?.max(sum))
    }

    /// Whether programs still count in these records. `kvmeter detach` clears the layout word while an agent may be running.
    #[must_use]
    pub fn are_counted(&self) -> bool {
        self.meta[0].layout.load(Ordering::Relaxed) == u64::from(LAYOUT)
    }
}

impl Readings for Records {
    fn vcpu_time_ns(&self, vcpu: ThreadSlot) -> Option<u64> {
        let record = self.record_of(vcpu).filter(|_| self.are_counted())?;
        let now = read(&record.run)?;
        let earlier = self.earlier_of(Owner(record.owner.load(Ordering::Acquire)), record);
        let now = now + earlier.map_or(0, kept_ns);
        // The programs take the record from its thread before they add to what is kept.
        fence(Ordering::Acquire);
        if !is_of(record, vcpu) {
            return None;
        }
        let lasting = earlier.unwrap_or(record);
        let given = monotone(&lasting.high_water, now);
        if is_of(record, vcpu) {
            return Some(given);
        }
        if !Owner(lasting.owner.load(Ordering::Acquire)).is_kept() {
            // The record got another thread just now: the next reader must not take this thread's time for that one's.
            let _ =
                lasting.high_water.compare_exchange(given, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        None
    }

    fn vm_time_ns(&self, vm: VmSlot) -> Option<u64> {
        let record = self.vms.get(usize::from(vm.0)).filter(|_| self.are_counted())?;
        if record.tgid.load(Ordering::Relaxed) == 0 {
            return None;
        }
        Some(monotone(&record.high_water, self.process_sum(record)?))
    }

    fn thread(&self, vcpu: ThreadSlot) -> Option<ThreadReading> {
        let record = self.record_of(vcpu)?;
        // The word of a thread that has never waited for a CPU is the one of a record without an event.
        let has_left = || {
            let run = record.run.load(Ordering::Acquire);
            run != word::UNKNOWN && !word::is_running(run)
        };
        let earlier = self.earlier_of(Owner(record.owner.load(Ordering::Acquire)), record);
        let kept = |cell: fn(&SharedThreadRecord) -> &AtomicU64| {
            earlier.map_or(0, |kept| cell(kept).load(Ordering::Relaxed))
        };
        let waited = word::shows(kept(|kept| &kept.wait), 0);
        let wait_ns = read(&record.wait).or_else(|| has_left().then_some(0));
        let reading = ThreadReading {
            tid: vcpu.tid,
            wait_ns: wait_ns.map(|ns| ns + waited),
            switches_in: record.switches_in.load(Ordering::Relaxed)
                + kept(|kept| &kept.switches_in),
            preemptions: record.preemptions.load(Ordering::Relaxed)
                + kept(|kept| &kept.preemptions),
        };
        fence(Ordering::Acquire);
        is_of(record, vcpu).then_some(reading)
    }

    fn cpu_mask(&self, vcpu: ThreadSlot) -> Option<CpuMask> {
        let record = self.record_of(vcpu)?;
        let tid = rustix::process::Pid::from_raw(i32::try_from(vcpu.tid).ok()?)?;
        let mask = rustix::thread::sched_getaffinity(Some(tid)).ok().map(CpuMask::new);
        mask.filter(|_| is_of(record, vcpu))
    }

    fn disk_io(&self, images: &[ImageSlot]) -> Option<DiskIo> {
        (!images.is_empty() && self.are_counted()).then(|| self.image_io(images))
    }

    fn disk_requests(&self, images: &[ImageSlot]) -> Option<[Requests; 2]> {
        (!images.is_empty() && self.are_counted()).then(|| self.image_requests(images))
    }

    fn since_boot_ns(&self) -> u64 {
        since_boot_ns()
    }
}

/// Readings without a probe: only the time is known.
#[derive(Clone, Copy, Debug)]
pub struct NoCounters;

impl Readings for NoCounters {
    fn vcpu_time_ns(&self, _: ThreadSlot) -> Option<u64> {
        None
    }

    fn vm_time_ns(&self, _: VmSlot) -> Option<u64> {
        None
    }

    fn thread(&self, _: ThreadSlot) -> Option<ThreadReading> {
        None
    }

    fn cpu_mask(&self, _: ThreadSlot) -> Option<CpuMask> {
        None
    }

    fn disk_io(&self, _: &[ImageSlot]) -> Option<DiskIo> {
        None
    }

    fn disk_requests(&self, _: &[ImageSlot]) -> Option<[Requests; 2]> {
        None
    }

    fn since_boot_ns(&self) -> u64 {
        since_boot_ns()
    }
}

/// Time since the host booted in ns (`CLOCK_BOOTTIME`, which includes suspend).
#[must_use]
pub fn since_boot_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Boottime))
}

/// CPU time in ns of all threads of a process, those that have exited included: the kernel's own sum. `None` = no process
/// has this id.
pub(crate) fn process_ns(tgid: u64) -> Option<u64> {
    /// The scheduler's clock of a process: `CPUCLOCK_SCHED` of the kernel's posix-timers.h.
    const SCHED: i32 = 2;
    let pid = i32::try_from(tgid).ok().filter(|pid| *pid > 0)?;
    // As clock_getcpuclockid(3) makes it, which reads the clock once more.
    let time = nix::time::ClockId::from_raw(!pid << 3 | SCHED).now().ok()?;
    let seconds = u64::try_from(time.tv_sec()).ok()?;
    Some(seconds * 1_000_000_000 + u64::try_from(time.tv_nsec()).ok()?)
}

/// CPU time in ns of the threads whose counts a record keeps.
fn kept_ns(kept: &SharedThreadRecord) -> u64 {
    shows(kept.run.load(Ordering::Acquire), 0)
}

/// How much more than what is kept of a vCPU a reader was given for the vCPU, in ns.
fn given_beyond(kept: &SharedThreadRecord) -> u64 {
    kept.high_water.load(Ordering::Acquire).saturating_sub(kept_ns(kept))
}

/// Whether a record is that of this thread now.
pub(super) fn is_of(record: &SharedThreadRecord, thread: ThreadSlot) -> bool {
    let owner = record.owner.load(Ordering::Acquire);
    let start = record.start.load(Ordering::Relaxed);
    owner != 0 && Owner(owner).tid() == thread.tid && (thread.start == 0 || thread.start == start)
}

/// The time that a word shows at a moment at which the word was in memory; `None` = no event yet.
///
/// The clock is read between two loads of the same word. After a single load, a writer could end the running stretch
/// before the clock is read, and the stretch would be counted too long.
fn read(cell: &AtomicU64) -> Option<u64> {
    let mut before = cell.load(Ordering::Acquire);
    let mut now = monotonic_ns();
    for _ in 0..TRIES {
        fence(Ordering::Acquire);
        let after = cell.load(Ordering::Relaxed);
        if after == before {
            break;
        }
        before = after;
        now = monotonic_ns();
    }
    (before != word::UNKNOWN).then(|| shows(before, now))
}

/// The time that a word shows at `now`. Saturates at 0 if `now` is some nanoseconds before the start of the stretch.
fn shows(word: u64, now: u64) -> u64 {
    let ns = word::shows(word, now);
    if ns < 1 << 62 { ns } else { 0 }
}

/// Clamps `value` to the largest value ever returned, so that a Counter64 never decreases.
///
/// The high-water mark may be ahead of the kernel's value by what the kernel's accounting clock leaves out of the
/// current stretch on the CPU: some hundred nanoseconds at the switch, and the time taken by interrupts
/// (`CONFIG_IRQ_TIME_ACCOUNTING`) or by an outer hypervisor (`CONFIG_PARAVIRT_TIME_ACCOUNTING`). The program at
/// `hrtimer_expire_exit` keeps that below the time between two timers on the thread's CPU: a tick at most where the CPU has
/// one. On a CPU of `nohz_full=`, which may have no timer, it may be all that was left out of the stretch. The values agree again once
/// the thread has run for that long.
fn monotone(high_water: &AtomicU64, value: u64) -> u64 {
    high_water.fetch_max(value, Ordering::Relaxed).max(value)
}

/// `CLOCK_MONOTONIC` in ns, the clock of `bpf_ktime_get_ns`.
pub(crate) fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// A time in ns. Negative times, which these clocks never return, become 0.
fn nanoseconds(time: rustix::time::Timespec) -> u64 {
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000
        + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OF_VIEW: ThreadSlot = ThreadSlot { record: 9, tid: 100, start: 7 };

    fn records_with(tid: u32, start: u64, ns: u64) -> Records {
        let records = Records::in_memory();
        records.meta[0].layout.store(u64::from(LAYOUT), Ordering::Relaxed);
        put(&records, tid, start, ns);
        records
    }

    fn put(records: &Records, tid: u32, start: u64, ns: u64) {
        let record = &records.threads[9];
        record.free();
        record.run.store(word::at_rest(ns), Ordering::Relaxed);
        record.wait.store(word::at_rest(1), Ordering::Relaxed);
        record.start.store(start, Ordering::Relaxed);
        record.owner.store(Owner::new(tid, 1).0, Ordering::Release);
    }

    #[test]
    fn a_record_that_passed_to_another_thread_is_absent_in_a_view_with_the_first() {
        let records = records_with(100, 7, 79_034);
        assert_eq!(records.vcpu_time_ns(OF_VIEW), Some(79_034));
        assert_eq!(records.thread(OF_VIEW).map(|thread| thread.tid), Some(100));
        // Another thread, and a later one with the same id.
        for (tid, start) in [(101, 8), (100, 8)] {
            put(&records, tid, start, 6);
            assert_eq!(records.vcpu_time_ns(OF_VIEW), None);
            assert_eq!(records.thread(OF_VIEW), None);
            assert!(records.cpu_mask(OF_VIEW).is_none());
            // The next view has that one, whose time begins with its own.
            assert_eq!(records.vcpu_time_ns(ThreadSlot { record: 9, tid, start }), Some(6));
        }
        records.threads[9].free();
        assert_eq!(records.vcpu_time_ns(OF_VIEW), None);
    }

    #[test]
    fn what_is_written_to_a_record_without_a_thread_is_no_time_of_the_vm() {
        let records = records_with(100, 7, 5);
        let vm = &records.vms[1];
        vm.tgid.store(std::process::id().into(), Ordering::Relaxed);
        vm.blocks[0].store(1, Ordering::Relaxed);
        vm.block_count.store(1, Ordering::Relaxed);
        assert_eq!(records.vm_sum(vm), 5);
        for owner in [Owner(0), Owner::FREED_BY_AGENT, Owner::FREED_BY_PROGRAM] {
            records.threads[10].owner.store(owner.0, Ordering::Relaxed);
            records.threads[10].run.store(word::running(9, 0), Ordering::Relaxed);
            assert_eq!(records.vm_sum(vm), 5, "{owner:?}");
        }
    }

    #[test]
    fn a_thread_without_an_event_is_known_by_its_id() {
        let records = records_with(100, 0, 5);
        let of_view = ThreadSlot { start: 0, ..OF_VIEW };
        assert_eq!(records.vcpu_time_ns(of_view), Some(5));
        // Its first event brings the start.
        put(&records, 100, 7, 6);
        assert_eq!(records.vcpu_time_ns(of_view), Some(6));
    }
}

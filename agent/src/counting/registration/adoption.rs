//! Takes over what an earlier agent registered.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use kvmeter_common::{BLOCK_LEN, Owner, word};

use super::{CpuVisits, FreeRecords, Registration, Tracker as _, blocks_of, is_untracked, tgid_of};
use crate::counters::{Records, VmSlot, mapped::SharedThreadRecord};

impl<R: AsRef<Records>> Registration<R> {
    /// Adopts the registrations in the records, and frees the image records that an earlier agent has merged. The programs saw
    /// the end of every thread while no agent ran, so a VM without threads has ended, even if its process id is in use again.
    #[must_use]
    pub fn adopt(records: R) -> Self {
        records.as_ref().index_images();
        records.as_ref().free_all_merged();
        let adopted = Self::take_over(records);
        adopted.restore_thread_ids();
        for (slot, _) in adopted.tracked_vms() {
            let maps = adopted.records();
            let mut threads = maps.threads_of(adopted.vm(slot));
            if is_untracked(adopted.vm(slot))
                || threads
                    .all(|(_, record)| !Owner(record.owner.load(Ordering::Acquire)).is_of_thread())
            {
                adopted.untrack_vm(slot);
            }
        }
        adopted
    }

    fn take_over(records: R) -> Self {
        let maps = records.as_ref();
        let mut blocks = vec![false; maps.threads.len() / BLOCK_LEN];
        // Block 0 contains slot 0, which means "no slot".
        blocks[0] = true;
        let (mut vms, mut used) = (VecDeque::new(), Vec::new());
        for (slot, vm) in (0..).zip(maps.vms.iter()).skip(1) {
            let tgid = tgid_of(vm);
            if tgid == 0 {
                vms.push_back(slot);
                continue;
            }
            used.push((tgid, slot, blocks_of(vm).count()));
            for block in blocks_of(vm) {
                if let Some(taken) = blocks.get_mut(usize::from(block)) {
                    *taken = true;
                }
            }
        }
        let blocks =
            (0..).zip(blocks).filter_map(|(block, taken)| (!taken).then_some(block)).collect();
        Self {
            records,
            free: Mutex::new(FreeRecords::new(vms, blocks, used)),
            visits: CpuVisits::default(),
        }
    }

    /// Enters threads that have a record and no entry in the map of thread ids. Their switches are not seen: the map was made
    /// again because `pid_max` has grown, and they were started before the programs used the new one. What has ended meanwhile
    /// is freed.
    fn restore_thread_ids(&self) {
        // The first block is no VM's.
        for (slot, record) in (0..=u16::MAX).zip(self.records().threads.iter()).skip(BLOCK_LEN) {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            let is_left = owner.is_kept() && tgid_of(self.vm(VmSlot(owner.vm_slot()))) == 0;
            if owner == Owner::FREED_BY_AGENT || is_left {
                // An earlier agent ended meanwhile.
                record.free();
            }
            let entry = self.records().slot_entry(owner.tid());
            if !owner.is_of_thread()
                || entry.is_some_and(|entry| entry.load(Ordering::Acquire) == slot)
            {
                continue;
            }
            let vm = self.vm(VmSlot(owner.vm_slot()));
            let run = record.run.load(Ordering::Acquire);
            // Of a stretch on a CPU whose end was not seen, what a reader was shown is known.
            let ran = if word::is_running(run) { 0 } else { word::shows(run, 0) };
            let ran = ran.max(record.high_water.load(Ordering::Acquire));
            // Until the next scan, the VM's CPU time is the kernel's own sum.
            vm.unrecorded.fetch_add(1, Ordering::AcqRel);
            // Where the thread was at its last switch that was seen, it need not be any more.
            record.run.store(word::UNKNOWN, Ordering::Release);
            record.wait.store(word::UNKNOWN, Ordering::Release);
            // The programs see its end from here on, unless it has ended before.
            let is_entered = entry.is_some_and(|entry| self.enter(entry, owner, slot));
            if !is_entered || !exists(tgid_of(vm), owner.tid()) {
                self.close(owner.tid(), slot, record, ran);
            }
        }
    }

    /// Enters a thread, unless another record is this thread's.
    fn enter(&self, entry: &AtomicU16, owner: Owner, slot: u16) -> bool {
        let known = entry.load(Ordering::Acquire);
        let of_another = |record: &SharedThreadRecord| {
            let there = Owner(record.owner.load(Ordering::Acquire));
            there.tid() != owner.tid()
        };
        let is_free =
            known == 0 || self.records().threads.get(usize::from(known)).is_none_or(of_another);
        is_free && entry.compare_exchange(known, slot, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// Whether a process has a thread with this id.
fn exists(tgid: u32, tid: u32) -> bool {
    Path::new(&format!("/proc/{tgid}/task/{tid}")).exists()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::counters::mapped::Mapped;

    /// A thread of another process.
    const GONE: u32 = 1;

    /// Records with a VM: this process, and one block of thread records, in which each thread has a record.
    fn records() -> Arc<Records> {
        let mut records = Records::in_memory();
        // One with entries for all thread ids.
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        records.tid_slot = Mapped::new(&file, 1 << 20).unwrap();
        let vm = &records.vms[1];
        vm.clear();
        vm.tgid.store(std::process::id().into(), Ordering::Relaxed);
        vm.recorded.store(1, Ordering::Relaxed);
        vm.blocks[0].store(1, Ordering::Relaxed);
        vm.block_count.store(1, Ordering::Relaxed);
        Arc::new(records)
    }

    /// Gives a thread a record, in which it is on its CPU.
    fn put(records: &Records, slot: u16, tid: u32, flags: u64) {
        let record = &records.threads[usize::from(slot)];
        record.owner.store(Owner::new(tid, 1).0 | flags, Ordering::Relaxed);
        record.run.store(word::running(5, 3), Ordering::Relaxed);
        if flags & Owner::DYING != 0 && flags & Owner::ENDED == 0 {
            records.vms[1].dying.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn owner(records: &Records, slot: u16) -> Owner {
        Owner(records.threads[usize::from(slot)].owner.load(Ordering::Relaxed))
    }

    fn run(records: &Records, slot: u16) -> u64 {
        records.threads[usize::from(slot)].run.load(Ordering::Relaxed)
    }

    fn entry(records: &Records, tid: u32) -> &AtomicU16 {
        records.slot_entry(tid).unwrap()
    }

    #[test]
    fn threads_that_have_ended_unseen_are_freed_and_are_not_dying_any_more() {
        let (records, own) = (records(), std::process::id());
        put(&records, 8, own, 0);
        entry(&records, own).store(8, Ordering::Relaxed);
        put(&records, 9, GONE, Owner::DYING);
        put(&records, 10, GONE + 1, Owner::VCPU);
        // Beyond the map.
        put(&records, 11, u32::MAX, Owner::DYING);
        let vm = &records.vms[1];
        let _adopted = Registration::adopt(Arc::clone(&records));
        // What is known of a vCPU's time is kept.
        let expected = [Owner(0), Owner::kept(1), Owner(0)];
        assert_eq!([9, 10, 11].map(|slot| owner(&records, slot)), expected);
        assert_eq!(
            [GONE, GONE + 1].map(|tid| entry(&records, tid).load(Ordering::Relaxed)),
            [0; 2]
        );
        assert_eq!(vm.dying.load(Ordering::Relaxed), 0);
        assert!(!vm.is_complete(), "their time is the kernel's until the next scan");
        // The programs have followed this one.
        assert_eq!((owner(&records, 8).tid(), run(&records, 8)), (own, word::running(5, 3)));
    }

    #[test]
    fn a_thread_whose_switches_were_not_seen_is_entered_and_is_not_taken_to_run() {
        let (records, own) = (records(), std::process::id());
        put(&records, 8, own, Owner::VCPU);
        // An entry that is left of another thread.
        put(&records, 9, GONE, 0);
        entry(&records, own).store(9, Ordering::Relaxed);
        let _adopted = Registration::adopt(Arc::clone(&records));
        assert_eq!(entry(&records, own).load(Ordering::Relaxed), 8);
        assert_eq!(owner(&records, 8), Owner(Owner::new(own, 1).0 | Owner::VCPU));
        assert_eq!(run(&records, 8), word::UNKNOWN);
        assert!(!records.vms[1].is_complete());
    }

    #[test]
    fn a_first_thread_that_has_ended_before_others_still_stands_for_its_process() {
        let (records, own) = (records(), std::process::id());
        let flags = Owner::DYING | Owner::ENDED;
        put(&records, 8, own, flags);
        let adopted = Registration::adopt(Arc::clone(&records));
        assert_eq!(entry(&records, own).load(Ordering::Relaxed), 8);
        assert_eq!(owner(&records, 8), Owner(Owner::new(own, 1).0 | flags));
        assert_eq!(records.vms[1].dying.load(Ordering::Relaxed), 0);
        assert_eq!(adopted.tracked_vms(), [(VmSlot(1), own)]);
    }

    #[test]
    fn a_thread_has_one_record() {
        let (records, own) = (records(), std::process::id());
        put(&records, 8, own, 0);
        put(&records, 9, own, 0);
        entry(&records, own).store(9, Ordering::Relaxed);
        let _adopted = Registration::adopt(Arc::clone(&records));
        assert_eq!([8, 9].map(|slot| owner(&records, slot).tid()), [0, own]);
        assert_eq!(entry(&records, own).load(Ordering::Relaxed), 9);
    }

    #[test]
    fn a_record_that_an_earlier_agent_was_freeing_is_freed() {
        let (records, own) = (records(), std::process::id());
        put(&records, 8, own, 0);
        entry(&records, own).store(8, Ordering::Relaxed);
        for (slot, owner) in [(9, Owner::FREED_BY_AGENT), (10, Owner::FREED_BY_PROGRAM)] {
            put(&records, slot, 0, 0);
            records.threads[usize::from(slot)].owner.store(owner.0, Ordering::Relaxed);
        }
        let adopted = Registration::adopt(Arc::clone(&records));
        // The program goes on.
        assert_eq!([9, 10].map(|slot| owner(&records, slot)), [Owner(0), Owner::FREED_BY_PROGRAM]);
        assert_eq!(run(&records, 9), word::UNKNOWN);
        adopted.untrack_vm(VmSlot(1));
        assert_eq!([8, 10].map(|slot| owner(&records, slot)), [Owner(0), Owner::FREED_BY_PROGRAM]);
    }

    #[test]
    fn a_vm_whose_threads_have_ended_has_ended() {
        let records = records();
        records.threads[10].owner.store(Owner::FREED_BY_PROGRAM.0, Ordering::Relaxed);
        put(&records, 8, GONE, Owner::DYING);
        let adopted = Registration::adopt(Arc::clone(&records));
        assert_eq!(adopted.tracked_vms(), []);
    }
}

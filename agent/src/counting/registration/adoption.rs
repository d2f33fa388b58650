//! Takes over what an earlier agent registered.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicU16, Ordering},
    },
};

use kvmeter_common::{BLOCK_LEN, Owner, VmRecord};

use super::{CpuVisits, FreeRecords, Registration, Tracker as _, blocks_of, tgid_of};
use crate::counters::{Records, VmSlot};

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
            let vm = adopted.vm(slot);
            // Its threads are registered with the first scan of the process.
            let has_moved =
                vm.flags.fetch_and(!VmRecord::MOVED, Ordering::AcqRel) & VmRecord::MOVED != 0;
            let mut threads = maps.threads_of(vm);
            if !has_moved && threads.all(|(_, record)| record.owner.load(Ordering::Acquire) == 0) {
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

    /// Enters the threads that have a record into a map of thread ids that was made again, because `pid_max` has grown. A thread
    /// that has ended meanwhile was not seen: the VM's CPU time is the kernel's own sum until the next scan.
    fn restore_thread_ids(&self) {
        for (slot, record) in (0..=u16::MAX).zip(self.records().threads.iter()).skip(1) {
            let owner = Owner(record.owner.load(Ordering::Acquire));
            let entry = self.records().slot_entry(owner.tid());
            let is_missing = |entry: &AtomicU16| entry.load(Ordering::Acquire) == 0;
            if owner.0 == 0 || owner.has(Owner::DYING) || !entry.is_some_and(is_missing) {
                continue;
            }
            let exists = std::path::Path::new(&format!("/proc/{}", owner.tid())).exists();
            match entry {
                Some(entry) if exists => {
                    let _ = entry.compare_exchange(0, slot, Ordering::AcqRel, Ordering::Relaxed);
                }
                _ => {
                    record.free();
                    self.vm(VmSlot(owner.vm_slot())).unrecorded.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
    }
}

//! What all hooks do with a thread's record.

use kvmeter_common::{BLOCK_LEN, Event, EventKind, Owner, ThreadRecord, VM_BLOCKS, VmRecord, word};

use crate::{atomic, maps, task::Task};

/// A thread that is counted, and its record.
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) slot: u16,
    pub(crate) record: *mut ThreadRecord,
}

/// Reads a field of a record as it is now: the other side writes too.
macro_rules! get {
    ($record:expr, $field:ident) => {
        // SAFETY: the record is a whole map value that the lookup checked for null, its fields are aligned.
        unsafe { (&raw const (*$record).$field).read_volatile() }
    };
}
/// Writes a field of a record in one store.
macro_rules! set {
    ($record:expr, $field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: the record is a whole map value that the lookup checked for null, its fields are aligned.
        unsafe { (&raw mut (*$record).$field).write_volatile(value) }
    }};
}
pub(crate) use {get, set};

impl Thread {
    /// The record in `slot`, if it is this very task's: a thread id may belong to another task by now,
    /// so the record remembers when its task was started.
    #[inline(always)]
    pub(crate) fn find(slot: u16, task: Task) -> Option<Self> {
        if slot == 0 {
            return None;
        }
        let record = maps::thread(slot)?;
        let start = task.start_time();
        let known = get!(record, start);
        if known != start {
            if known != 0 {
                return None;
            }
            set!(record, start, start);
        }
        Some(Self { slot, record })
    }

    #[inline(always)]
    pub(crate) fn owner(self) -> Owner {
        Owner(get!(self.record, owner))
    }

    #[inline(always)]
    pub(crate) fn mark(self, flags: u64) {
        set!(self.record, owner, self.owner().0 | flags);
    }

    /// Tells the agent about this thread.
    #[inline(always)]
    pub(crate) fn report(self, kind: EventKind, tgid: u32) {
        let owner = self.owner();
        maps::send(&Event {
            kind: kind as u32,
            tgid,
            tid: owner.tid(),
            vm_slot: u32::from(owner.vm_slot()),
        });
    }

    /// Hands the thread's CPU time over to its VM and frees the record. `sum` is all it has used, in ns.
    #[inline(always)]
    pub(crate) fn hand_over(self, sum: u64) -> Option<*mut VmRecord> {
        let vm = maps::vm(self.owner().vm_slot())?;
        // SAFETY: all words are aligned fields of map values.
        unsafe { atomic::fetch_add(&raw mut (*vm).handovers_begun, 1) };
        // SAFETY: as above.
        unsafe { atomic::fetch_add(&raw mut (*vm).exited, sum) };
        set!(self.record, run, word::UNKNOWN);
        set!(self.record, wait, word::UNKNOWN);
        set!(self.record, switches_in, 0);
        set!(self.record, preemptions, 0);
        set!(self.record, start, 0);
        set!(self.record, high_water, 0);
        // The exchange orders the stores above before the record becomes free.
        // SAFETY: as above.
        unsafe { atomic::compare_exchange(&raw mut (*self.record).owner, self.owner().0, 0) };
        // SAFETY: as above.
        unsafe { atomic::fetch_add(&raw mut (*vm).handovers_done, 1) };
        Some(vm)
    }
}

/// Takes a free record of the VM for a thread that has just been made.
#[inline(always)]
pub(crate) fn take_record(vm_slot: u16, vm: *mut VmRecord, tid: u32) -> Option<Thread> {
    let count = get!(vm, block_count) as usize;
    let owner = Owner::new(tid, vm_slot).0;
    for b in 0..VM_BLOCKS {
        if b >= count {
            break;
        }
        // SAFETY: `b` is below the length of the array.
        let block = unsafe { (&raw const (*vm).blocks).cast::<u16>().add(b).read_volatile() };
        for i in 0..BLOCK_LEN {
            let slot = (usize::from(block) * BLOCK_LEN + i) as u16;
            let record = maps::thread(slot)?;
            // SAFETY: the field is an aligned word of a map value.
            if get!(record, owner) == 0
                && slot != 0
                && unsafe { atomic::compare_exchange(&raw mut (*record).owner, 0, owner) }
            {
                // A program on another CPU may have written after the record was freed.
                set!(record, run, word::UNKNOWN);
                set!(record, wait, word::UNKNOWN);
                return Some(Thread { slot, record });
            }
        }
    }
    None
}

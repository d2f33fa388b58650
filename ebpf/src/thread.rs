//! The record of a thread.
//!
//! At any time one CPU writes a thread's counters: the scheduler serialises the events of a task, and the record belongs
//! to one task. So plain stores do; each is volatile and of a whole word, and no reader needs an order between two words.
//! The owner word, by which a record is claimed and freed, is exchanged atomically.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use kvmeter_common::{
    BLOCK_LEN, Event, EventKind, Owner, Place, SEARCHED_BLOCKS, ThreadRecord, Vcpu, VmRecord, word,
};

use crate::{atomic, maps, task::Task};

/// A counted thread and its record.
#[derive(Clone, Copy)]
pub(crate) struct Thread {
    pub(crate) slot: u16,
    pub(crate) record: *mut ThreadRecord,
}

/// Reads a field of a record from memory, because the agent writes it, too.
macro_rules! get {
    ($record:expr, $field:ident) => {
        // SAFETY: `maps` returns pointers to whole map values only, which stay for as long as the program, and the
        // fields of the `repr(C)` records are aligned integers.
        unsafe { (&raw const (*$record).$field).read_volatile() }
    };
}
/// Writes a field of a record in one store.
macro_rules! set {
    ($record:expr, $field:ident, $value:expr) => {{
        let value = $value;
        // SAFETY: `maps` returns pointers to whole map values only, which stay for as long as the program, and the
        // fields of the `repr(C)` records are aligned integers.
        unsafe { (&raw mut (*$record).$field).write_volatile(value) }
    }};
}
pub(crate) use {get, set};

impl Thread {
    /// The record in `slot`, if it is this task's.
    #[inline(always)]
    pub(crate) fn find(slot: u16, task: Task) -> Option<Self> {
        if slot == 0 {
            return None;
        }
        Self::of(slot, maps::thread(slot)?, task)
    }

    /// `record`, which is in `slot`, if it is this task's. A thread id may have passed to another task, so the record also has
    /// the start time of its task. Before the first event the owner says whose it is: the slot may be one that an ended thread
    /// has left behind.
    #[inline(always)]
    pub(crate) fn of(slot: u16, record: *mut ThreadRecord, task: Task) -> Option<Self> {
        let start = task.start_time();
        let known = get!(record, start);
        if known != start {
            let owner = Owner(get!(record, owner));
            if known != 0 || owner.tid() != task.pid() {
                return None;
            }
            set!(record, start, start);
            note_io_cgroup(owner.vm_slot(), task.io_cgroup());
        }
        Some(Self { slot, record })
    }

    #[inline(always)]
    pub(crate) fn owner(self) -> Owner {
        Owner(get!(self.record, owner))
    }

    /// Sets flags of the owner word. Returns the word before; `None`: the record is no thread's any more.
    #[inline(always)]
    pub(crate) fn mark(self, flags: u64) -> Option<Owner> {
        self.exchange_owner(|owner| owner.is_of_thread().then_some(owner.0 | flags))
    }

    /// Stores the owner word that `new` returns, if any. Returns the word before; `None`: none was stored.
    #[inline(always)]
    fn exchange_owner(self, mut new: impl FnMut(Owner) -> Option<u64>) -> Option<Owner> {
        // The agent, the only other writer while the record is claimed, changes the word a few times in a scan at most, and when it
        // has the moves of vCPUs reported.
        for _ in 0..2 {
            let owner = self.owner();
            let new = new(owner)?;
            // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
            let is_done =
                unsafe { atomic::compare_exchange(&raw mut (*self.record).owner, owner.0, new) };
            if is_done {
                return Some(owner);
            }
        }
        None
    }

    /// Sends an event about this thread, which is `task`'s.
    #[inline(always)]
    pub(crate) fn report(self, kind: EventKind, task: Task) {
        let owner = self.owner();
        maps::send(&Event {
            kind: kind as u32,
            tgid: task.tgid(),
            tid: owner.tid(),
            vm_slot: u32::from(owner.vm_slot()),
        });
    }

    /// Stores where the vCPU's thread is, and reports it if the agent is to know. The record alone says whether: the VM's own would
    /// be a second table to look into at each sleep.
    #[inline(always)]
    pub(crate) fn move_to(self, place: Place, task: Task) {
        set!(self.record, place, place);
        if self.owner().has(Owner::WATCHED) {
            self.report_move(task);
        }
    }

    /// Reports that the vCPU's thread has moved, unless an event of the same VM has not been handled yet.
    #[inline(always)]
    fn report_move(self, task: Task) {
        // Before the VM's flag, which the agent clears before it sets this one: either the agent finds the new place, or it is
        // told of it.
        let unwatched = |owner: Owner| owner.is_of_thread().then_some(owner.0 & !Owner::WATCHED);
        let Some(owner) = self.exchange_owner(unwatched) else { return };
        let Some(vm) = maps::vm(owner.vm_slot()) else { return };
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        let flags = unsafe { atomic::fetch_or(&raw mut (*vm).flags, VmRecord::PENDING_VCPUS) };
        if flags & VmRecord::PENDING_VCPUS == 0 {
            self.report(EventKind::VcpuMoved, task);
        }
    }

    /// Adds the thread's CPU time, `sum` ns in all at the time `now`, to its VM and frees the record, or keeps it for the thread's vCPU.
    /// Returns the VM's record; `None`: the agent has freed the thread's record.
    #[inline(always)]
    pub(crate) fn hand_over(self, tid: u32, sum: u64, now: u64) -> Option<*mut VmRecord> {
        let owner = self.owner();
        if owner.tid() != tid {
            return None;
        }
        let vm = maps::vm(owner.vm_slot())?;
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).handovers_begun, 1) };
        // The record must be no thread's before it is reset: the agent frees records in the same way, and another thread may get
        // the record then.
        let (mut vcpu, mut stays) = (Vcpu::UNNUMBERED, false);
        let taken = self.exchange_owner(|owner| {
            vcpu = if owner.has(Owner::VCPU) { get!(self.record, vcpu) } else { Vcpu::UNNUMBERED };
            stays = vcpu.is_numbered() && vcpu.earlier() == 0;
            let next = if stays { Owner::kept(owner.vm_slot()) } else { Owner::FREED_BY_PROGRAM };
            (owner.tid() == tid).then_some(next.0)
        });
        if let Some(before) = taken {
            // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
            unsafe { atomic::fetch_add(&raw mut (*vm).exited, sum) };
            let wait = word::at_rest(word::shows(get!(self.record, wait), now));
            if stays {
                set!(self.record, run, word::at_rest(sum));
                set!(self.record, wait, wait);
            } else {
                if vcpu.is_numbered() {
                    self.add_to(vcpu.earlier(), owner.vm_slot(), word::at_rest(sum), wait);
                }
                self.free();
            }
            // A thread that was registered after it had begun to exit was not counted as dying.
            if before.is_dying() {
                stop_dying(vm);
            }
        }
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).handovers_done, 1) };
        taken.map(|_| vm)
    }

    /// Frees the record of a thread that has not run yet, unless the agent has.
    #[inline(always)]
    pub(crate) fn give_back(self, tid: u32) {
        let freed = |owner: Owner| (owner.tid() == tid).then_some(Owner::FREED_BY_PROGRAM.0);
        if self.exchange_owner(freed).is_some() {
            self.free();
        }
    }

    /// Resets and frees the record, which this program has taken from its thread.
    #[inline(always)]
    fn free(self) {
        self.clear();
        // The exchange orders the stores of `clear` before the record becomes free.
        // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
        unsafe {
            atomic::compare_exchange(&raw mut (*self.record).owner, Owner::FREED_BY_PROGRAM.0, 0)
        };
    }

    /// Adds this thread's counts to those that the record in `slot` keeps of its vCPU. The agent frees such a record after the VM's
    /// hand-overs are done.
    #[inline(always)]
    fn add_to(self, slot: u16, vm_slot: u16, run: u64, wait: u64) {
        let Some(kept) = maps::thread(slot) else { return };
        if get!(kept, owner) != Owner::kept(vm_slot).0 {
            return;
        }
        let (switches_in, preemptions) =
            (get!(self.record, switches_in), get!(self.record, preemptions));
        // SAFETY: `kept` is a whole value of the map, and the fields are aligned words of it. Words at rest add up.
        unsafe {
            atomic::fetch_add(&raw mut (*kept).run, run);
            atomic::fetch_add(&raw mut (*kept).wait, wait);
            atomic::fetch_add(&raw mut (*kept).switches_in, switches_in);
            atomic::fetch_add(&raw mut (*kept).preemptions, preemptions);
        }
    }

    /// Resets all but the owner and what is valid with a flag of the owner only.
    #[inline(always)]
    fn clear(self) {
        let ThreadRecord {
            run,
            wait,
            switches_in,
            preemptions,
            start,
            high_water,
            owner: _,
            vcpu: _,
            place,
        } = ThreadRecord::EMPTY;
        set!(self.record, run, run);
        set!(self.record, wait, wait);
        set!(self.record, switches_in, switches_in);
        set!(self.record, preemptions, preemptions);
        set!(self.record, start, start);
        set!(self.record, high_water, high_water);
        set!(self.record, place, place);
    }
}

/// Notes the cgroup of a VM's block I/O; 0: there is none.
#[inline(always)]
pub(crate) fn note_io_cgroup(vm_slot: u16, cgroup: u64) {
    if let Some(vm) = maps::vm(vm_slot)
        && cgroup != 0
        && get!(vm, io_cgroup) != cgroup
    {
        set!(vm, io_cgroup, cgroup);
    }
}

/// A thread of the VM has made its last switch.
#[inline(always)]
pub(crate) fn stop_dying(vm: *mut VmRecord) {
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    unsafe { atomic::fetch_add(&raw mut (*vm).dying, u64::MAX) };
}

/// The VM whose process a task belongs to: the VM's slot and record. The process is known by the record of its first
/// thread, which stays until the last thread ends, or else by the task's own.
#[inline(always)]
pub(crate) fn vm_of(task: Task) -> Option<(u16, *mut VmRecord)> {
    let tgid = task.tgid();
    let owner = match maps::owner_of_process(tgid) {
        Some(owner) => owner,
        None => Thread::find(maps::slot_of(task.pid()), task)?.owner(),
    };
    let vm = maps::vm(owner.vm_slot())?;
    // The first record is the agent's own process, while it tests programs: no thread of that process gets a record.
    let is_vm = owner.vm_slot() != 0 && get!(vm, tgid) == u64::from(tgid);
    is_vm.then_some((owner.vm_slot(), vm))
}

/// Claims a free record of the VM for a new thread.
#[inline(always)]
pub(crate) fn claim_record(vm_slot: u16, vm: *mut VmRecord, tid: u32) -> Option<Thread> {
    let owner = Owner::new(tid, vm_slot).0;
    search_records(vm, |slot, record| {
        if slot == 0 || get!(record, owner) != 0 {
            return None;
        }
        // SAFETY: `record` is a whole value of the map, and the field an aligned word of it.
        if !unsafe { atomic::compare_exchange(&raw mut (*record).owner, 0, owner) } {
            return None;
        }
        // A program on another CPU may have written after the record was freed.
        set!(record, run, word::UNKNOWN);
        set!(record, wait, word::UNKNOWN);
        Some(Thread { slot, record })
    })
}

/// Shows the records of the VM to `look`, with their slots, until it returns something.
#[inline(always)]
pub(crate) fn search_records<T>(
    vm: *mut VmRecord,
    look: impl Fn(u16, *mut ThreadRecord) -> Option<T>,
) -> Option<T> {
    let count = get!(vm, block_count);
    for b in 0..SEARCHED_BLOCKS {
        if b as u64 >= count {
            break;
        }
        // SAFETY: `b` is below `VM_BLOCKS`, the length of the array, which lies in a whole value of the map.
        let block = unsafe { (&raw const (*vm).blocks).cast::<u16>().add(b).read_volatile() };
        for i in 0..BLOCK_LEN {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a block's number is below 2^16 / BLOCK_LEN"
            )]
            let slot = (usize::from(block) * BLOCK_LEN + i) as u16;
            let found = look(slot, maps::thread(slot)?);
            if found.is_some() {
                return found;
            }
        }
    }
    None
}

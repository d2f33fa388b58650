//! `sched_process_fork(task *parent, task *child)`: a task was made and has not run yet. A new thread of a
//! VM's process is counted from its first instruction on.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{EventKind, Owner, VmRecord, word};

use crate::{
    atomic, maps,
    sched_process_exec::report_if_qemu,
    task::Task,
    thread::{Thread, get, set, take_record},
};

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments 0 and 1 are task pointers.
    let (parent, child) = unsafe { (Task::new(ctx.arg(0)), Task::new(ctx.arg(1))) };
    if child.tgid() != parent.tgid() {
        // A QEMU that goes into the background runs its machine in a child.
        report_if_qemu(child);
        return 0;
    }
    let slot = maps::slot_of(parent.pid());
    let Some(parent) = Thread::find(slot, parent) else { return 0 };
    let vm_slot = parent.owner().vm_slot();
    let Some(vm) = maps::vm(vm_slot) else { return 0 };
    let tid = child.pid();
    let Some(entry) = maps::slot_entry(tid) else { return 0 };
    // SAFETY: the entry lies in the map's value.
    let there = unsafe { entry.read_volatile() };
    if there != 0 && is_of(there, child) {
        // The agent has seen the thread in procfs already.
        return 0;
    }
    if there != 0 {
        release_stale(there, tid);
    }
    match take_record(vm_slot, vm, tid) {
        Some(thread) => {
            set!(thread.record, start, child.start_time());
            // SAFETY: as above.
            unsafe { entry.write_volatile(thread.slot) };
        }
        None => {
            // SAFETY: an aligned field of a map value.
            unsafe { atomic::fetch_add(&raw mut (*vm).unrecorded, 1) };
            maps::count_unrecorded();
        }
    }
    if get!(vm, flags) & VmRecord::PENDING_THREADS == 0 {
        set!(vm, flags, get!(vm, flags) | VmRecord::PENDING_THREADS);
        parent.report(EventKind::ThreadsChanged, child.tgid());
    }
    0
}

/// Whether the record in a slot is of this very thread, and not of one that had its id before.
#[inline(always)]
fn is_of(slot: u16, task: Task) -> bool {
    let Some(record) = maps::thread(slot) else { return false };
    let thread = Thread { slot, record };
    let start = get!(record, start);
    let is_its = start == 0 || start == task.start_time();
    thread.owner().tid() == task.pid() && !thread.owner().has(Owner::DYING) && is_its
}

/// Closes the record of the thread that had this id before and has not come to its last switch: the kernel
/// gives an id away as soon as it has closed its own account of the thread.
#[inline(always)]
fn release_stale(slot: u16, tid: u32) {
    let Some(record) = maps::thread(slot) else { return };
    let thread = Thread { slot, record };
    if thread.owner().tid() != tid {
        return;
    }
    // SAFETY: no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let was_dying = thread.owner().has(Owner::DYING);
    if let Some(vm) = thread.hand_over(word::shows(get!(record, run), now))
        && was_dying
    {
        // SAFETY: an aligned field of a map value.
        unsafe { atomic::fetch_add(&raw mut (*vm).dying, u64::MAX) };
    }
}

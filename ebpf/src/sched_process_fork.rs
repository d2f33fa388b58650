//! `sched_process_fork(task *parent, task *child)`: a task was created and has not run yet. A new thread of a VM's process
//! is counted from its first instruction on.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{EventKind, Owner, VmRecord, word};

use crate::{
    atomic, maps,
    sched_process_exec::report_if_qemu,
    task::Task,
    thread::{Thread, claim_record, get, set},
};

#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let (parent, child) = (Task::new(ctx.arg(0)), Task::new(ctx.arg(1)));
    if child.tgid() != parent.tgid() {
        // With -daemonize, QEMU runs the VM in a child.
        report_if_qemu(child);
        return 0;
    }
    let slot = maps::slot_of(parent.pid());
    let Some(parent) = Thread::find(slot, parent) else { return 0 };
    let vm_slot = parent.owner().vm_slot();
    let Some(vm) = maps::vm(vm_slot) else { return 0 };
    let tid = child.pid();
    let Some(entry) = maps::slot_entry(tid) else { return 0 };
    // SAFETY: `slot_entry` returns a valid, aligned entry.
    let there = unsafe { entry.read_volatile() };
    if there != 0 && is_of(there, child) {
        // The agent has registered the thread already.
        return 0;
    }
    if there != 0 {
        release_stale(there, tid);
    }
    match claim_record(vm_slot, vm, tid) {
        Some(thread) => {
            set!(thread.record, start, child.start_time());
            // SAFETY: `slot_entry` returns a valid, aligned entry.
            unsafe { entry.write_volatile(thread.slot) };
        }
        None => {
            // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
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

/// Whether the record in a slot is this thread's, not that of an earlier thread with the same id.
#[inline(always)]
fn is_of(slot: u16, task: Task) -> bool {
    let Some(record) = maps::thread(slot) else { return false };
    let thread = Thread { slot, record };
    let start = get!(record, start);
    let is_its_start = start == 0 || start == task.start_time();
    thread.owner().tid() == task.pid() && !thread.owner().has(Owner::DYING) && is_its_start
}

/// Closes the record of the previous thread with this id, before that thread's last switch: the kernel reuses an id as
/// soon as it has closed its own accounts of the thread.
#[inline(always)]
fn release_stale(slot: u16, tid: u32) {
    let Some(record) = maps::thread(slot) else { return };
    let thread = Thread { slot, record };
    if thread.owner().tid() != tid {
        return;
    }
    // SAFETY: the helper has no arguments and no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let was_dying = thread.owner().has(Owner::DYING);
    if let Some(vm) = thread.hand_over(word::shows(get!(record, run), now))
        && was_dying
    {
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).dying, u64::MAX) };
    }
}

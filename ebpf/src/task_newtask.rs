//! `task_newtask(task *task, unsigned long clone_flags)`: the running task has created `task`, which has not run yet. A new
//! thread of a VM's process is counted from its first instruction on, also one that the kernel creates there: a worker of
//! io_uring or vhost. (`sched_process_fork` is for clone(2) only.)

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{Event, EventKind, Owner, VmRecord, word};

use crate::{
    atomic, maps,
    sched_process_exec::report_if_qemu,
    task::Task,
    thread::{Thread, claim_record, get, set, vm_of},
};

#[btf_tracepoint(function = "task_newtask")]
fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    let (parent, child) = (Task::current(), Task::new(ctx.arg(0)));
    if child.tgid() != parent.tgid() {
        // With -daemonize, QEMU runs the VM in a child.
        report_if_qemu(child);
        return 0;
    }
    let Some((vm_slot, vm)) = vm_of(parent) else { return 0 };
    let Some(is_recorded) = record(child, vm_slot, vm) else { return 0 };
    if !is_recorded {
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).unrecorded, 1) };
        maps::count_unrecorded();
    }
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    let flags = unsafe { atomic::fetch_or(&raw mut (*vm).flags, VmRecord::PENDING_THREADS) };
    if flags & VmRecord::PENDING_THREADS == 0 {
        let tgid = child.tgid();
        let kind = EventKind::ThreadsChanged as u32;
        maps::send(&Event { kind, tgid, tid: parent.pid(), vm_slot: u32::from(vm_slot) });
    }
    0
}

/// Gives a new thread of a VM a record. Returns false if none is free, or the thread's id has no slot; `None`: the process is no VM any
/// more.
#[inline(always)]
fn record(child: Task, vm_slot: u16, vm: *mut VmRecord) -> Option<bool> {
    let tid = child.pid();
    let Some(entry) = maps::slot_entry(tid) else { return Some(false) };
    // SAFETY: `slot_entry` returns a valid, aligned entry.
    let there = unsafe { entry.read_volatile() };
    if there != 0 && is_of(there, child) {
        // The agent has registered the thread already.
        return Some(true);
    }
    if there != 0 {
        release_stale(there, tid);
    }
    let Some(thread) = claim_record(vm_slot, vm, tid) else { return Some(false) };
    set!(thread.record, start, child.start_time());
    // SAFETY: `slot_entry` returns a valid, aligned entry.
    unsafe { entry.write_volatile(thread.slot) };
    // The agent changes the word before it frees the records: either it finds this one, or the change is seen here.
    if get!(vm, tgid) == u64::from(child.tgid()) {
        return Some(true);
    }
    maps::forget(tid, thread.slot);
    thread.give_back(tid);
    None
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
    if thread.owner().tid() == tid {
        // SAFETY: the helper has no arguments and no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        thread.hand_over(tid, word::shows(get!(record, run), now), now);
    }
}

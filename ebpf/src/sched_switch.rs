//! `sched_switch(bool preempt, task *prev, task *next[, unsigned int prev_state])`: the kernel calls it under the run
//! queue's lock, after it has brought `prev`'s times up to date and before `next` runs.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{EventKind, Owner, Place, word};

use crate::{
    atomic, kernel, maps,
    task::Task,
    thread::{Thread, get, set, stop_dying},
};

/// `TASK_DEAD` of the kernel's sched.h: the task's last switch.
const TASK_DEAD: u32 = 0x80;

/// `TASK_UNINTERRUPTIBLE`: the task waits for the kernel to do something.
const TASK_UNINTERRUPTIBLE: u32 = 2;

/// `__TASK_STOPPED` and `__TASK_TRACED`.
const TASK_STOPPED: u32 = 4 | 8;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    let (prev, next) = (Task::new(ctx.arg(1)), Task::new(ctx.arg(2)));
    let (prev_slot, next_slot) = (maps::slot_of(prev.pid()), maps::slot_of(next.pid()));
    if prev_slot | next_slot == 0 {
        return 0;
    }
    // A bool fills the low byte of its register.
    let preempted = ctx.arg::<u64>(0) & 0xff != 0;
    let state = if kernel::SWITCH_HAS_STATE.load() != 0 { ctx.arg::<u32>(3) } else { prev.state() };
    let runnable = preempted || state == 0;
    // The clock is more than half of this program's cost: it is read once for both threads, and not for a thread that
    // goes to sleep.
    // SAFETY: the helper has no arguments and no precondition.
    let now = if next_slot != 0 || runnable { unsafe { bpf_ktime_get_ns() } } else { 0 };
    if let Some(thread) = Thread::find(prev_slot, prev) {
        leave(thread, prev, runnable, now);
        follow(thread, prev, if runnable { 0 } else { state });
        if state & TASK_DEAD != 0 {
            finish(thread, prev);
        }
    }
    if let Some(thread) = Thread::find(next_slot, next) {
        arrive(thread, next, now);
    }
    0
}

/// `task` leaves its CPU; `runnable`: it goes back to the run queue.
#[inline(always)]
fn leave(thread: Thread, task: Task, runnable: bool, now: u64) {
    let record = thread.record;
    let was = get!(record, run);
    set!(record, run, word::at_rest(task.sum_exec_runtime()));
    let delay = task.run_delay();
    if runnable {
        set!(record, wait, word::running(delay, now));
        if word::is_running(was) {
            set!(record, preemptions, get!(record, preemptions) + 1);
        }
    } else {
        set!(record, wait, word::at_rest(delay));
    }
}

/// Follows where the thread of a vCPU is, and whether another thread is one's; `state`: 0 = runnable.
#[inline(always)]
fn follow(thread: Thread, task: Task, state: u32) {
    let owner = thread.owner();
    if !owner.has(Owner::VCPU) {
        if !owner.has(Owner::SEEN_IN_KVM) && task.is_in_kvm_run() {
            thread.mark(Owner::SEEN_IN_KVM);
            thread.report(EventKind::SeenInKvm, task);
        }
        return;
    }
    let place = get!(thread.record, place);
    if task.is_in_kvm_run() {
        if place.is(Place::UNKNOWN) {
            thread.move_to(place.enter(), task);
        } else if !place.is(Place::IN_KVM_RUN) {
            set!(thread.record, place, place.enter());
        }
    } else if state != 0 && state & TASK_UNINTERRUPTIBLE == 0 && !place.is(Place::ASLEEP) {
        let is_stopped = state & TASK_STOPPED != 0;
        if is_stopped || !owner.has(Owner::HALTS_OUTSIDE) {
            thread.move_to(place.at(Place::ASLEEP), task);
        }
    }
}

/// `task` gets a CPU.
#[inline(always)]
fn arrive(thread: Thread, task: Task, now: u64) {
    let record = thread.record;
    let wait = get!(record, wait);
    if word::is_running(wait) {
        set!(record, wait, word::at_rest(word::shows(wait, now)));
    }
    if !word::is_running(get!(record, run)) {
        set!(record, switches_in, get!(record, switches_in) + 1);
    }
    let place = get!(record, place);
    if place.is(Place::ASLEEP) {
        thread.move_to(place.at(Place::AWAKE), task);
    }
    set!(record, run, word::running(task.sum_exec_runtime(), now));
}

/// `task` has made its last switch, after which all its times are at rest: its CPU time goes to the VM.
#[inline(always)]
fn finish(thread: Thread, task: Task) {
    let is_last = task.live_threads() <= 0;
    if task.is_first_of_process() && !is_last {
        keep(thread);
        return;
    }
    let Some(vm) = thread.hand_over(task.pid(), task.sum_exec_runtime(), 0) else { return };
    maps::forget(task.pid(), thread.slot);
    if is_last {
        finish_first(task);
        return;
    }
    // The hand-over includes the last microseconds of a thread, after the kernel had added the thread to its own sum.
    // While no thread is exiting, the kernel's sum is complete and replaces ours. The order matters: a thread that begins
    // to exit meanwhile is seen in `dying`, and one that has also finished makes the exchange fail.
    let exited = get!(vm, exited);
    let sum_of_kernel = task.sum_sched_runtime();
    if get!(vm, dying) == 0 {
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::compare_exchange(&raw mut (*vm).exited, exited, sum_of_kernel) };
    }
}

/// The first thread of a process has ended before others. The kernel keeps it as a zombie and leaves its time out of the
/// sum over exited threads, and its thread id is the process's: the record stays.
#[inline(always)]
fn keep(thread: Thread) {
    if let Some(before) = thread.mark(Owner::ENDED)
        && before.is_dying()
        && let Some(vm) = maps::vm(before.vm_slot())
    {
        stop_dying(vm);
    }
}

/// The last thread of a process has ended: frees the record of the first one, if that ended earlier.
#[inline(always)]
fn finish_first(last: Task) {
    let tgid = last.tgid();
    let slot = maps::slot_of(tgid);
    let Some(record) = maps::thread(slot) else { return };
    let first = Thread { slot, record };
    let owner = first.owner();
    if slot != 0 && owner.tid() == tgid && owner.has(Owner::ENDED) {
        first.hand_over(tgid, word::shows(get!(record, run), 0), 0);
        maps::forget(tgid, slot);
    }
}

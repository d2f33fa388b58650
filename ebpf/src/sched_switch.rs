//! `sched_switch(bool preempt, task *prev, task *next[, unsigned int prev_state])`: the kernel calls it
//! under the run queue's lock, after it has brought `prev`'s times up to date and before `next` runs.

use aya_ebpf::{
    EbpfContext as _, helpers::bpf_ktime_get_ns, macros::btf_tracepoint,
    programs::BtfTracePointContext,
};
use kvmeter_common::{EventKind, Owner, word};

use crate::{
    atomic, kernel, maps,
    task::Task,
    thread::{Thread, get, set},
};

/// `TASK_DEAD` of the kernel's sched.h: the task's last switch.
const TASK_DEAD: u32 = 0x80;

#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: arguments 1 and 2 are task pointers.
    let (prev, next) = unsafe { (Task::new(ctx.arg(1)), Task::new(ctx.arg(2))) };
    let (prev_slot, next_slot) = (maps::slot_of(prev.pid()), maps::slot_of(next.pid()));
    if prev_slot | next_slot == 0 {
        return 0;
    }
    // SAFETY: argument 0 is a bool in a register, argument 3 an unsigned int where the kernel has it.
    let (preempted, state) = unsafe {
        let state =
            if kernel::SWITCH_HAS_STATE.load() != 0 { ctx.arg::<u32>(3) } else { prev.state() };
        (*ctx.as_ptr().cast::<u64>() as u8 != 0, state)
    };
    let runnable = preempted || state == 0;
    // The clock is more than half of what this program costs: it is read once for both, and not for a thread
    // that goes to sleep.
    // SAFETY: no precondition.
    let now = if next_slot != 0 || runnable { unsafe { bpf_ktime_get_ns() } } else { 0 };
    if let Some(thread) = Thread::find(prev_slot, prev) {
        leave(thread, prev, runnable, now);
        if state & TASK_DEAD != 0 {
            finish(thread, prev);
        }
    }
    if let Some(thread) = Thread::find(next_slot, next) {
        arrive(thread, next, now);
    }
    0
}

/// `task` loses its CPU, and still wants one if it is `runnable`.
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
    if thread.owner().0 & (Owner::VCPU | Owner::SEEN_IN_KVM) == 0 && task.is_in_kvm_run() {
        thread.mark(Owner::SEEN_IN_KVM);
        thread.report(EventKind::SeenInKvm, task.tgid());
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
    set!(record, run, word::running(task.sum_exec_runtime(), now));
}

/// The task will never run again: its time goes to the VM.
#[inline(always)]
fn finish(thread: Thread, task: Task) {
    // A thread that was registered after it began to exit was not counted as dying.
    let was_dying = thread.owner().has(Owner::DYING);
    let Some(vm) = thread.hand_over(task.sum_exec_runtime()) else { return };
    if let Some(entry) = maps::slot_entry(task.pid()) {
        // SAFETY: the entry lies in the map's value.
        if unsafe { entry.read_volatile() } == thread.slot {
            // SAFETY: as above.
            unsafe { entry.write_volatile(0) };
        }
    }
    // What was handed over includes the last microseconds of each thread, after the kernel had added it to
    // its own sum. Whenever no thread is on its way out the kernel's sum is complete and replaces ours.
    // The order matters: a thread that begins to exit meanwhile is seen in `dying`, one that has also ended
    // makes the exchange fail.
    let minus_one = u64::MAX;
    if was_dying {
        // SAFETY: aligned fields of a map value.
        unsafe { atomic::fetch_add(&raw mut (*vm).dying, minus_one) };
    }
    let exited = get!(vm, exited);
    let kernels = task.sum_sched_runtime();
    if get!(vm, dying) == 0 {
        // SAFETY: as above.
        unsafe { atomic::compare_exchange(&raw mut (*vm).exited, exited, kernels) };
    }
}

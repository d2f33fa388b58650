//! `hrtimer_expire_exit(struct hrtimer *timer)`: a timer has run, on the CPU's current task. The scheduler's tick is one: it
//! brings the task's CPU time up to date.
//!
//! Between two switches the word of a running thread follows `CLOCK_MONOTONIC`. The kernel's own count leaves out time taken by
//! interrupts or by an outer hypervisor, and its clock is not adjusted as `CLOCK_MONOTONIC` is. The difference between the two
//! grows until the next switch of the thread; this program limits it. On a CPU of `nohz_full=` with one runnable thread there is no tick,
//! and maybe no other timer.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::word;

use crate::{
    maps,
    task::Task,
    thread::{Thread, get, set},
};

#[btf_tracepoint(function = "hrtimer_expire_exit")]
fn hrtimer_expire_exit(_: BtfTracePointContext) -> i32 {
    let task = Task::current();
    let slot = maps::slot_of(task.pid());
    if slot == 0 {
        return 0;
    }
    // A thread that has had no event yet is left to its first switch.
    if let Some(record) = maps::thread(slot)
        && word::is_running(get!(record, run))
        && let Some(thread) = Thread::of(slot, record, task)
    {
        correct(thread, task);
    }
    0
}

/// Corrects the word of a thread that has been on its CPU for long, where it shows a time that cannot be.
#[inline(always)]
fn correct(thread: Thread, task: Task) {
    let Some(last) = maps::last_timer() else { return };
    // SAFETY: the helper has no arguments and no precondition.
    let now = unsafe { bpf_ktime_get_ns() };
    let (start, sum) = (task.start_time(), task.sum_exec_runtime());
    let since = if get!(last, start) != start {
        0
    } else if get!(last, sum) != sum {
        get!(last, at)
    } else {
        get!(last, since)
    };
    set!(last, start, start);
    set!(last, sum, sum);
    set!(last, since, since);
    set!(last, at, now);
    let shown = word::shows(get!(thread.record, run), now);
    // At most all of the time since the kernel's count was right.
    let most = sum + now.saturating_sub(since);
    if shown < sum {
        set!(thread.record, run, word::running(sum, now));
    } else if shown > most {
        set!(thread.record, run, word::running(most, now));
    }
}

//! `sched_wakeup(task *p)`: `p` is runnable, or on a CPU already.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::word;

use crate::{
    maps,
    task::Task,
    thread::{Thread, get, set},
};

#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(0));
    let Some(thread) = Thread::find(maps::slot_of(task.pid()), task) else { return 0 };
    let (run, wait) = (get!(thread.record, run), get!(thread.record, wait));
    // A thread without an event so far may be on a CPU.
    if run != word::UNKNOWN && !word::is_running(run) && !word::is_running(wait) {
        // SAFETY: the helper has no arguments and no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        set!(thread.record, wait, word::running(word::shows(wait, now), now));
    }
    0
}

//! `sched_wakeup(task *p)`: `p` wants a CPU, or is on one already.

use aya_ebpf::{helpers::bpf_ktime_get_ns, macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::word;

use crate::{
    maps,
    task::Task,
    thread::{Thread, get, set},
};

#[btf_tracepoint(function = "sched_wakeup")]
fn sched_wakeup(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 is a task pointer.
    let task = unsafe { Task::new(ctx.arg(0)) };
    let Some(thread) = Thread::find(maps::slot_of(task.pid()), task) else { return 0 };
    let (run, wait) = (get!(thread.record, run), get!(thread.record, wait));
    // A thread that nothing is known of may be on a CPU.
    if run != word::UNKNOWN && !word::is_running(run) && !word::is_running(wait) {
        // SAFETY: no precondition.
        let now = unsafe { bpf_ktime_get_ns() };
        set!(thread.record, wait, word::running(word::shows(wait, now), now));
    }
    0
}

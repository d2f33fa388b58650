//! `cgroup_attach_task(cgroup *dst, const char *path, task *task, bool threadgroup)`: `task`, or with `threadgroup` its
//! process, has been moved to another cgroup.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    task::Task,
    thread::{note_io_cgroup, vm_of},
};

#[btf_tracepoint(function = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(2));
    if let Some((vm_slot, _)) = vm_of(task) {
        note_io_cgroup(vm_slot, task.io_cgroup());
    }
    0
}

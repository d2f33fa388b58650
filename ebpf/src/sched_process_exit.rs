//! `sched_process_exit(task *p[, bool group_dead])`: `p` has begun to exit. It still runs for a while; its record is
//! closed at its last switch.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{EventKind, Owner, VmRecord};

use crate::{atomic, maps, task::Task, thread::Thread, vcpu::assign_by_name};

#[btf_tracepoint(function = "sched_process_exit")]
fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task = Task::new(ctx.arg(0));
    let Some(thread) = Thread::find(maps::slot_of(task.pid()), task) else { return 0 };
    let Some(owner) = thread.mark(Owner::DYING) else { return 0 };
    if owner.has(Owner::DYING) {
        return 0;
    }
    let vm = maps::vm(owner.vm_slot());
    if let Some(vm) = vm {
        // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
        unsafe { atomic::fetch_add(&raw mut (*vm).dying, 1) };
    }
    if task.live_threads() <= 0 {
        let killed = task.was_killed();
        if killed && let Some(vm) = vm {
            // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
            unsafe { atomic::fetch_or(&raw mut (*vm).flags, VmRecord::KILLED) };
        }
        thread.report(if killed { EventKind::VmKilled } else { EventKind::VmExit }, task);
    } else if owner.has(Owner::VCPU) {
        thread.report(EventKind::VcpuExit, task);
    } else if owner.has(Owner::SEEN_IN_KVM)
        && let Some(vm) = vm
    {
        assign_by_name(thread, owner.vm_slot(), vm);
    }
    0
}

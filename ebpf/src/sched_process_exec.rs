//! `sched_process_exec(task *p, pid_t old_pid, struct linux_binprm *bprm)`: `p` has begun to run another
//! program. QEMU without KVM shows itself by its name alone.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{Event, EventKind};

use crate::{maps, task::Task};

const QEMU_SYSTEM: u64 = u64::from_ne_bytes(*b"qemu-sys");
const QEMU_KVM: u64 = u64::from_ne_bytes(*b"qemu-kvm");
/// As some distributions install it.
const KVM: u64 = u64::from_ne_bytes(*b"kvm\0\0\0\0\0");

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    // SAFETY: argument 0 is a task pointer.
    report_if_qemu(unsafe { Task::new(ctx.arg(0)) });
    0
}

/// Tells the agent of a process that may be about to run a machine.
#[inline(always)]
pub(crate) fn report_if_qemu(task: Task) {
    let comm = task.comm();
    if comm == QEMU_SYSTEM || comm == QEMU_KVM || comm == KVM {
        maps::send(&Event {
            kind: EventKind::Exec as u32,
            tgid: task.tgid(),
            tid: task.pid(),
            vm_slot: 0,
        });
    }
}

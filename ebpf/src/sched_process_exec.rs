//! `sched_process_exec(task *p, pid_t old_pid, struct linux_binprm *bprm)`: `p` has called execve(2). A QEMU without KVM
//! is recognised by its name alone.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use kvmeter_common::{Event, EventKind};

use crate::{maps, task::Task};

const QEMU_SYSTEM: [u8; 8] = *b"qemu-sys";
const QEMU_KVM: [u8; 8] = *b"qemu-kvm";
/// The name in some distributions.
const KVM: [u8; 8] = *b"kvm\0\0\0\0\0";

#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    report_if_qemu(Task::new(ctx.arg(0)));
    0
}

/// Sends [`EventKind::Exec`] if the process may be about to run a VM. Any user can start such processes by the thousand: they have
/// half of the ring.
#[inline(always)]
pub(crate) fn report_if_qemu(task: Task) {
    let comm = task.comm();
    #[expect(clippy::host_endian_bytes, reason = "the name was loaded as one word of this host")]
    let is = |name| comm == u64::from_ne_bytes(name);
    if is(QEMU_SYSTEM) || is(QEMU_KVM) || is(KVM) {
        maps::send_within_half(&Event {
            kind: EventKind::Exec as u32,
            tgid: task.tgid(),
            tid: task.pid(),
            vm_slot: 0,
        });
    }
}

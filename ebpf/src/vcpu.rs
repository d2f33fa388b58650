//! The vCPU of a thread that begins to exit before an agent has said which vCPU it runs: none runs, or the thread was short-lived.

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use aya_ebpf::helpers::bpf_get_current_comm;
use kvmeter_common::{Owner, Vcpu, VmRecord};

use crate::thread::{Thread, get, search_records, set};

/// Notes the vCPU whose number is in the name of the running thread, which is `thread`. Only what the thread has used until its end is
/// counted for the vCPU.
#[inline(always)]
pub(crate) fn assign_by_name(thread: Thread, vm_slot: u16, vm: *mut VmRecord) {
    let Some(number) = number_in_name() else { return };
    let earlier = kept(vm_slot, vm, number).unwrap_or(0);
    set!(thread.record, vcpu, Vcpu::new(number, earlier));
    thread.mark(Owner::VCPU);
}

/// The number of a vCPU in the name of the running thread, as QEMU (`CPU 1/KVM`) and Cloud Hypervisor (`vcpu1`) have it, which can
/// unplug vCPUs.
#[inline(always)]
#[expect(clippy::host_endian_bytes, reason = "both sides are words of this host")]
#[expect(clippy::needless_range_loop, reason = "the place is that of a word, too")]
fn number_in_name() -> Option<u16> {
    /// Digits of the largest number.
    const DIGITS: usize = 4;
    let name = bpf_get_current_comm().ok()?;
    let word = |at: usize| u32::from_ne_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
    let is_of_qemu = word(0) == u32::from_ne_bytes(*b"CPU ");
    if !is_of_qemu && word(0) != u32::from_ne_bytes(*b"vcpu") {
        return None;
    }
    let mut number = 0;
    for at in 4..=4 + DIGITS {
        let digit = name[at].wrapping_sub(b'0');
        if digit > 9 {
            let ends =
                if is_of_qemu { word(at) == u32::from_ne_bytes(*b"/KVM") } else { name[at] == 0 };
            return (ends && at > 4).then_some(number);
        }
        number = number * 10 + u16::from(digit);
    }
    None
}

/// Slot of the record that keeps the counts of a vCPU.
#[inline(always)]
fn kept(vm_slot: u16, vm: *mut VmRecord, number: u16) -> Option<u16> {
    search_records(vm, |slot, record| {
        let is_kept = get!(record, owner) == Owner::kept(vm_slot).0
            && get!(record, vcpu) == Vcpu::new(number, 0);
        is_kept.then_some(slot)
    })
}

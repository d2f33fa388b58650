//! The numbers of a vCPU.

use super::{Moment, Number, is_down, time::without_record};
use crate::{
    counters::{CpuMask, ThreadReading},
    inventory::{Vcpu, Vm},
};

/// Why there is no number in the record of a thread.
const WITHOUT_EVENT: &str = "the thread has exited or has not run yet, or the counting has ended";

/// CPU time of a vCPU in ns. Never decreases while the VM runs.
#[must_use]
pub fn vcpu_time_ns(moment: Moment<'_>, vm: &Vm, vcpu: &Vcpu) -> Number<'static, u64> {
    match vcpu.slot {
        Some(slot) => Number::of_kernel(moment.readings.vcpu_time_ns(slot), WITHOUT_EVENT),
        None if is_down(vm) => Number::Off,
        None if vm.slot.is_some() => Number::Absent("its thread is not known"),
        None => Number::Absent(without_record(vm)),
    }
}

/// Time in ns that a vCPU was runnable and waited for a CPU.
#[must_use]
pub fn vcpu_wait_ns(moment: Moment<'_>, vm: &Vm, vcpu: &Vcpu) -> Number<'static, u64> {
    of_thread(moment, vm, vcpu, |thread| thread.wait_ns)
}

/// Number of times the vCPU got a CPU.
#[must_use]
pub fn vcpu_switches(moment: Moment<'_>, vm: &Vm, vcpu: &Vcpu) -> Number<'static, u64> {
    of_thread(moment, vm, vcpu, |thread| Some(thread.switches_in))
}

/// Number of times the vCPU lost its CPU while it was runnable.
#[must_use]
pub fn vcpu_preemptions(moment: Moment<'_>, vm: &Vm, vcpu: &Vcpu) -> Number<'static, u64> {
    of_thread(moment, vm, vcpu, |thread| Some(thread.preemptions))
}

/// Id of the vCPU's thread in the host's PID namespace; `None` = the thread is not known or has exited.
#[must_use]
pub fn vcpu_thread(moment: Moment<'_>, vcpu: &Vcpu) -> Option<u32> {
    Some(moment.readings.thread(vcpu.slot?)?.tid)
}

/// The host's CPUs on which the scheduler may run the vCPU; `None` = its thread is not known or has exited.
#[must_use]
pub fn vcpu_cpu_mask(moment: Moment<'_>, vcpu: &Vcpu) -> Option<CpuMask> {
    moment.readings.cpu_mask(vcpu.slot?)
}

/// A number out of the record of the vCPU's thread. It is absent where the vCPU's time is.
fn of_thread(
    moment: Moment<'_>,
    vm: &Vm,
    vcpu: &Vcpu,
    read: fn(ThreadReading) -> Option<u64>,
) -> Number<'static, u64> {
    match (vcpu_time_ns(moment, vm, vcpu), vcpu.slot) {
        (Number::Kernel(_), Some(slot)) => {
            Number::of_kernel(moment.readings.thread(slot).and_then(read), WITHOUT_EVENT)
        }
        (other, _) => other,
    }
}

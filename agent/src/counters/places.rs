//! Where the threads of vCPUs are, as the BPF programs see it at each switch.

use std::sync::atomic::Ordering;

use kvmeter_common::{Place, word};

use super::{Records, ThreadSlot, records::is_of};

/// Where the thread of a vCPU is now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VcpuPlace {
    /// Where it was seen last.
    pub place: Place,
    /// Whether it has a CPU.
    pub is_on_cpu: bool,
    /// Whether it has no CPU, and waits for none.
    pub is_at_rest: bool,
    /// Number of times that it got a CPU.
    pub switches_in: u64,
}

impl Records {
    /// Where the thread of a vCPU is; `None` = the record is free, or another thread's.
    #[must_use]
    pub fn vcpu_place(&self, vcpu: ThreadSlot) -> Option<VcpuPlace> {
        let record = self.record_of(vcpu)?;
        let run = record.run.load(Ordering::Acquire);
        let is_on_cpu = run != word::UNKNOWN && word::is_running(run);
        let waits = word::is_running(record.wait.load(Ordering::Acquire));
        let found = VcpuPlace {
            place: Place(record.place.load(Ordering::Acquire)),
            is_on_cpu,
            is_at_rest: run != word::UNKNOWN && !is_on_cpu && !waits,
            switches_in: record.switches_in.load(Ordering::Acquire),
        };
        is_of(record, vcpu).then_some(found)
    }

    /// Notes the place of a thread that the programs have not seen since it was registered.
    pub fn note_place(&self, vcpu: ThreadSlot, place: u32) {
        if let Some(record) = self.record_of(vcpu) {
            // What the programs have seen meanwhile is newer.
            let _ = record.place.compare_exchange(
                Place::UNKNOWN,
                place,
                Ordering::AcqRel,
                Ordering::Relaxed,
            );
        }
    }
}

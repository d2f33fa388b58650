//! Reports whether the vCPUs of each VM run.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    command_line::Vmm,
    pauses::{Past, STARTED},
    scan::Scan,
    tracked::TrackedProcesses,
};
use crate::{
    counters::{ThreadSlot, VcpuPlace, since_boot_ns},
    inventory::Fact,
};

impl TrackedProcesses {
    /// Notes where the threads of vCPUs are that the programs have not seen yet.
    ///
    /// # Errors
    ///
    /// Why it cannot be seen whether the VM is paused.
    pub(super) fn note_places(
        &mut self,
        pid: u32,
        scan: &Scan,
        slots: &HashMap<u32, ThreadSlot>,
    ) -> Result<(), String> {
        if let Some(known) = self.known.get_mut(&pid) {
            known.has_run |= scan.runs.has_run;
        }
        let is_counted = scan.vcpus.keys().all(|tid| slots.contains_key(tid));
        let unseen =
            scan.runs.unseen.or_else(|| (!is_counted).then_some("its vCPUs are not counted"));
        let Some(tracker) = self.tracker.as_ref().filter(|_| unseen.is_none()) else {
            return Err(format!(
                "whether it is paused is not known: {}",
                unseen.unwrap_or_default()
            ));
        };
        for (tid, rest) in &scan.runs.rests {
            if let (Some(slot), Some(place)) = (slots.get(tid), rest.place()) {
                tracker.note_place(*slot, place);
            }
        }
        // A vCPU inside KVM_RUN that has slept outside for that long was stopped or frozen there.
        if let Some(rest) = scan.runs.rests.values().max().filter(|_| !scan.vcpus.is_empty()) {
            self.pauses.answer(pid, *rest, Instant::now());
        }
        Ok(())
    }

    /// A vCPU of a VM has moved: whether the VM runs is looked at for some time.
    pub(super) fn suspect(&mut self, pid: u32, now: Instant) {
        if self.known.get(&pid).is_some_and(|known| known.sees_vcpus) {
            self.pauses.suspect(pid, now);
        }
    }

    /// Events may have been lost.
    pub(super) fn suspect_all(&mut self, now: Instant) {
        self.pauses.suspect_all(now);
    }

    /// When VMs are to be looked at; `None` = none is.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.pauses.next()
    }

    /// Looks at the VMs that are due, and reports those that run again, and those that are paused. Returns the processes to be scanned
    /// now, for what their vCPUs wait for.
    pub(super) fn look(&mut self, now: Instant) -> Vec<u32> {
        let mut to_scan = Vec::new();
        for pid in self.pauses.take_due(now) {
            if self.look_at(pid, now) {
                let vm = self.known.get(&pid).and_then(|known| known.vm.slot);
                if let (Some(tracker), Some(vm)) = (&self.tracker, vm) {
                    tracker.watch_vcpus(vm);
                }
                // What has moved since the look before, and was not reported.
                self.look_at(pid, now);
            }
            if self.pauses.asks(pid) {
                to_scan.push(pid);
            }
        }
        to_scan
    }

    /// Returns whether it was the last look.
    fn look_at(&mut self, pid: u32, now: Instant) -> bool {
        let (Some(known), Some(tracker)) = (self.known.get_mut(&pid), &self.tracker) else {
            return false;
        };
        let vcpus = &known.vm.vcpus;
        let places: Option<Vec<VcpuPlace>> =
            vcpus.iter().map(|vcpu| tracker.vcpu_place(vcpu.slot?)).collect();
        // One that is gone is followed by a scan, which has the VM looked at again.
        let places = places.unwrap_or_default();
        known.has_run |= places.iter().any(|of| of.place.entries() > 0);
        let age = Duration::from_nanos(since_boot_ns().saturating_sub(known.vm.started_ns));
        let is_qemu = known.described.vmm == Vmm::Qemu;
        let waits_for_user = known.described.starts_stopped && !known.has_run;
        let past = Past {
            may_pause: known.has_run || waits_for_user,
            // A QEMU also pauses its VM by itself, when its storage is full. The others do so by their API only.
            by_user: waits_for_user || !is_qemu,
            started: now + STARTED.saturating_sub(age),
        };
        let look = self.pauses.look(pid, &places, past, now);
        if let Some(state) = look.state {
            tracing::debug!(vm = known.vm.name, pid, ?state, "vCPUs");
            self.facts.push(Fact::Vcpus(pid, state));
        }
        look.ends
    }
}

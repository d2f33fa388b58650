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
    vcpus::Rest,
};
use crate::{
    counters::{ThreadSlot, VcpuPlace, since_boot_ns},
    inventory::{Fact, VmProcess},
};

/// What can be seen of a VM's vCPUs.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Sight {
    /// Nothing.
    #[default]
    None,
    /// Whether they are in `KVM_RUN`.
    Runs,
    /// Whether they are stopped with their process.
    Stops,
}

impl TrackedProcesses {
    /// Notes where the threads of vCPUs are that the programs have not seen yet. Returns what can be seen of the VM's vCPUs, and what
    /// cannot.
    pub(super) fn note_places(
        &mut self,
        pid: u32,
        scan: &Scan,
        slots: &HashMap<u32, ThreadSlot>,
    ) -> (Sight, Option<String>) {
        let Some(tracker) = &self.tracker else { return (Sight::None, None) };
        if let Some(known) = self.known.get_mut(&pid) {
            known.has_run |= scan.runs.has_run;
        }
        if !scan.watched().all(|tid| slots.contains_key(&tid)) {
            let gap = "whether it is paused is not known: its vCPUs are not counted";
            return (Sight::None, Some(gap.to_owned()));
        }
        let sight = if scan.runs.unseen.is_none() { Sight::Runs } else { Sight::Stops };
        // Of the others only this says that a VM is paused.
        let counts = |rest: &Rest| sight == Sight::Runs || *rest == Rest::Stopped;
        for (tid, rest) in scan.runs.rests.iter().filter(|(_, rest)| counts(rest)) {
            if let (Some(slot), Some(place)) = (slots.get(tid), rest.place()) {
                tracker.note_place(*slot, place);
            }
        }
        // A vCPU inside KVM_RUN that has slept outside for that long was stopped or frozen there.
        if let Some(rest) = scan.runs.rests.values().max() {
            let rest = if counts(rest) { *rest } else { Rest::Other };
            self.pauses.answer(pid, rest, Instant::now());
        }
        let gap = |why| format!("whether it is paused is not known: {why}");
        (sight, scan.runs.unseen.map(gap))
    }

    /// Begins to watch the vCPUs of a VM, or ends it.
    pub(super) fn watch(&mut self, vm: &VmProcess, sight: Sight) {
        match (sight, vm.slot, &self.tracker) {
            (Sight::Runs | Sight::Stops, Some(slot), Some(tracker)) => {
                tracker.watch_vcpus(slot, sight == Sight::Stops);
                self.pauses.suspect(vm.pid, Instant::now());
            }
            _ => self.pauses.forget(vm.pid),
        }
    }

    /// A vCPU of a VM has moved: whether the VM runs is looked at for some time.
    pub(super) fn suspect(&mut self, pid: u32, now: Instant) {
        if self.known.get(&pid).is_some_and(|known| known.sight != Sight::None) {
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
            if self.look_at(pid, now)
                && let (Some(tracker), Some(known)) = (&self.tracker, self.known.get(&pid))
                && let Some(vm) = known.vm.slot
            {
                tracker.watch_vcpus(vm, known.sight == Sight::Stops);
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
        let watched = known.vm.vcpus.iter().map(|vcpu| vcpu.slot);
        let watched = watched.chain(known.stand_in.map(Some));
        let places: Option<Vec<VcpuPlace>> =
            watched.map(|slot| tracker.vcpu_place(slot?)).collect();
        // One that is gone is followed by a scan, which has the VM looked at again.
        let places = places.unwrap_or_default();
        known.has_run |= places.iter().any(|of| of.place.entries() > 0);
        let age = Duration::from_nanos(since_boot_ns().saturating_sub(known.vm.started_ns));
        let is_qemu = known.described.vmm == Vmm::Qemu;
        let only_stopped = known.sight == Sight::Stops;
        let waits_for_user = known.described.starts_stopped && !known.has_run && !only_stopped;
        let past = Past {
            may_pause: known.has_run || waits_for_user || only_stopped,
            only_stopped,
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

//! The images of the VMs: their headers are read, and records of closed ones freed.

use std::{
    collections::{BTreeSet, HashSet},
    time::{Duration, Instant},
};

use super::{
    super::{
        command_line::Vmm,
        header_scans::Again,
        header_slots::Storage,
        image_headers::{HeaderReport, ScanTarget, Start},
        plugged::Needs,
    },
    TrackedProcesses,
};
use crate::{
    counters::{ImageRecordInfo, VmSlot},
    inventory::{DomainDisk, VmProcess},
};

/// Grace period after which the record of a closed, unassigned image is freed.
const CLOSED_GRACE: Duration = Duration::from_secs(5);

impl TrackedProcesses {
    /// Frees unassigned image records whose file is closed, after a grace period: a VMM creates an image, closes it and
    /// reopens it. Those of a file server (9p, virtiofs) are freed whether open or not. Returns whether another scan is needed.
    pub(super) fn free_closed(
        &mut self,
        slot: VmSlot,
        vm: &VmProcess,
        unassigned: &[ImageRecordInfo],
    ) -> bool {
        let Some(tracker) = &self.tracker else { return false };
        let is_file_server = tracker.allow_images(slot, unassigned.len());
        if is_file_server {
            tracker.limit_images(slot);
        }
        let open: HashSet<_> = vm.files.iter().map(|file| file.key(slot)).collect();
        let mut closed: Vec<_> = unassigned
            .iter()
            .filter(|image| is_file_server || !open.contains(&image.key))
            .collect();
        if !closed.is_empty() {
            // A late scan may have been overtaken by an assignment.
            let still = tracker.unassigned_images(slot);
            closed.retain(|image| {
                still.iter().any(|now| (now.slot, now.key) == (image.slot, image.key))
            });
        }
        let closed: Vec<_> = closed.into_iter().map(|image| image.slot).collect();
        let now = Instant::now();
        self.closed.retain(|image, (of, _)| *of != vm.pid || closed.contains(image));
        for image in closed {
            let (_, since) = self.closed.entry(image).or_insert((vm.pid, now));
            if since.elapsed() > CLOSED_GRACE {
                tracker.free_image(image);
                self.closed.remove(&image);
            }
        }
        self.closed.values().any(|(of, _)| *of == vm.pid)
    }

    /// Starts a header scan if the backing chain of a disk is known from its images only, if the VM does I/O on an unassigned
    /// image, or if an image may be a disk that was plugged in. Returns whether another scan of the process is needed.
    pub(super) fn scan_headers(&mut self, vm: &VmProcess, vmm: Vmm, is_unassigned: bool) -> bool {
        let now = Instant::now();
        let Some(known) = self.known.get_mut(&vm.pid) else { return false };
        let plugged = match (vmm, &vm.machine) {
            (Vmm::Qemu, None) => known.plugged.see(vm, now),
            // libvirt reports its disks.
            _ => Needs::Nothing,
        };
        let needs_thread = |disk: &DomainDisk| {
            let file = vm.file_at(&disk.resource);
            disk.chain_is_in_image || file.is_some_and(|file| !file.answers_from_memory)
        };
        let mut waits = plugged == Needs::Time;
        let since = match plugged {
            Needs::Headers(since) => Some(since),
            Needs::Nothing | Needs::Time => None,
        };
        if !is_unassigned && since.is_none() && !vm.devices.disks.iter().any(needs_thread) {
            return waits;
        }
        let (due, is_moving) = known.images.due(vm, Again { is_unassigned, since }, now);
        waits |= is_moving;
        for (storage, batch) in due {
            let target = ScanTarget {
                proc_root: self.roots.proc.clone(),
                pid: vm.pid,
                start_ticks: vm.start_ticks,
                account: vm.account,
                storage,
                batch: batch.clone(),
                raw: vm.raw_files().collect(),
                names: known.images.names(vm),
            };
            match self.headers.start_scan(target) {
                Start::Running => known.images.began(storage, batch, now),
                Start::Full => drop(self.waiting.insert((vm.pid, storage))),
                Start::Short => waits = true,
            }
        }
        waits
    }

    /// Takes the result of a header scan. Returns the processes to be scanned now.
    pub(in super::super) fn take_headers(&mut self, report: HeaderReport) -> BTreeSet<u32> {
        // While a storage hangs, each report of another one wakes none of those that wait for it.
        let (headers, known) = (&self.headers, &self.known);
        let may_begin = |(pid, storage): &(u32, Storage)| {
            let of = known.get(pid);
            of.is_none_or(|known| headers.has_room(*storage, known.vm.account))
        };
        let mut to_scan: BTreeSet<u32> =
            self.waiting.extract_if(.., may_begin).map(|(pid, _)| pid).collect();
        if let Some(known) = self.known.get_mut(&report.pid)
            && known.vm.start_ticks == report.start_ticks
        {
            let pid = report.pid;
            known.images.take(report, &known.vm);
            if let Some(from) = known.images.complete_from() {
                known.plugged.note_headers(from);
                known.plugged.decide(&known.vm, &known.images.headers);
            }
            to_scan.insert(pid);
        }
        to_scan
    }
}

//! How the disks of one VM are counted: which of its open files each disk is made of, by which method, and in which
//! records.

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kvmeter_common::{ImageKey, Layer};

use super::{
    backing_files::{BackingFile, BackingFiles},
    io_cgroup,
    method::{self, Choice, Works},
};
use crate::{
    counters::{ClaimError, ImageRecordInfo, ImageSlot, Records},
    inventory::{
        CountedBy, CountingReport, DomainDisk, Now, OpenFile, PathAnswer, StorageMedia,
        StorageSource, VmPlan, retry::Backoff,
    },
    probe::Method,
};

/// A younger VMM may not have opened its disks yet.
const YOUNG: Duration = Duration::from_secs(3);

/// Closed records of one disk that are kept apart; more are merged into one.
const CLOSED: usize = 8;

/// First pause before libvirt is asked again what a file is on which the VM does I/O: libvirt knows a new image only
/// after QEMU has it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// While a limit of a cgroup delays a VM's requests, how often the other processes of the cgroup are looked for.
const SHARED_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is looked whether the hooks know the VM's process, and why they may not.
const UNKNOWN_INTERVAL: Duration = Duration::from_secs(1);
const UNKNOWN_PROCESS: &str = "the first thread of the VM's process has no record";

/// Pauses before an image that found no record is tried again: the first, and the longest.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(64);

/// The disks of one VM.
#[derive(Debug)]
pub(super) struct VmDisks {
    pub(super) plan: Arc<VmPlan>,
    /// Images of no known disk, with the schedule by which libvirt is asked what they are.
    unidentified: HashMap<ImageSlot, Backoff>,
    /// When a VMM that has not opened a disk is not young any more.
    pub(super) grown_up: Option<Instant>,
    /// When the processes that share the VM's cgroup are looked for again.
    shared_due: Option<Instant>,
    /// When it is looked again whether the hooks know the VM's process.
    unknown_due: Option<Instant>,
    /// When an image that found no record is tried again, and the pause before that.
    refused: Option<(Instant, Duration)>,
    /// The methods that count its disks.
    pub(super) needed: BTreeSet<Method>,
    /// What was reported last.
    report: Option<CountingReport>,
}

/// A disk of the plan.
#[derive(Clone, Copy, Debug)]
struct Planned<'a> {
    plan: &'a VmPlan,
    storage: u32,
    disk: &'a DomainDisk,
}

/// One count of all disks of a VM.
struct Round<'a> {
    records: &'a Records,
    hooks: &'a dyn Works,
    now: Now,
    /// Why an image found no record.
    refused: Option<ClaimError>,
    files: BackingFiles<'a>,
    /// The records of this VM.
    taken: Vec<ImageRecordInfo>,
    /// The place in `taken` of the first record of each image.
    first_of: HashMap<ImageKey, usize>,
    /// The open files of each disk, by their records when the round began.
    own: HashMap<u32, Vec<&'a OpenFile>>,
    /// Keys that two open files have.
    shared: HashSet<ImageKey>,
    /// The disk to which an image was given.
    given: HashMap<ImageKey, u32>,
    needed: BTreeSet<Method>,
    grown_up: Option<Instant>,
    /// The processes beside the VM's in its cgroup, if a limit of the cgroup delays its requests: they cannot be told apart.
    /// `None` = none was delayed.
    sharing: Option<Option<Vec<u32>>>,
    /// Whether the VMM was seen to call io_submit(2).
    has_submitted: bool,
    /// Records that are empty now and that no later view shows.
    merged: Vec<ImageSlot>,
}

/// What came of a count.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// The report, if it differs from the last one.
    pub(super) report: Option<CountingReport>,
    /// Records to be freed once readers see the report.
    pub(super) merged: Vec<ImageSlot>,
    /// Block devices that the VM was not known to have open: requests on them may be the VM's, too, from now on.
    pub(super) opened: BTreeSet<u32>,
}

impl VmDisks {
    pub(super) fn new(plan: Arc<VmPlan>) -> Self {
        Self {
            plan,
            unidentified: HashMap::new(),
            grown_up: None,
            shared_due: None,
            unknown_due: None,
            refused: None,
            needed: BTreeSet::new(),
            report: None,
        }
    }

    /// Finds out how each disk is counted, and claims the records.
    pub(super) fn count(&mut self, records: &Records, hooks: &dyn Works, now: Now) -> Outcome {
        let plan = Arc::clone(&self.plan);
        let keys = plan.process.files.iter().map(|file| file.key(plan.vm));
        let devices = keys.filter(|key| key.file == ImageKey::NO_FILE).map(|key| key.device);
        let opened = records.note_open_devices(plan.vm, devices.collect());
        if !records.hooks_know(plan.vm, plan.process.pid) {
            return Outcome { opened, ..self.uncounted(now) };
        }
        let mut round = Round::new(records, hooks, now, &plan);
        round.sharing = records.has_delays(plan.vm).then(|| io_cgroup::others(plan.process.pid));
        let mut disks = Vec::with_capacity(plan.disks.len());
        for (storage, disk) in &plan.disks {
            let planned = Planned { plan: &plan, storage: *storage, disk };
            disks.push((*storage, round.count(planned)));
        }
        let Round { taken, needed, grown_up, merged, sharing, refused, .. } = round;
        self.unknown_due = None;
        records.note_refused_image(plan.vm, refused);
        self.refused = refused.map(|_| {
            let pause = self.refused.map_or(FIRST_RETRY, |(_, pause)| LONGEST_RETRY.min(pause * 2));
            (now.instant + pause, pause)
        });
        self.shared_due = (sharing.is_some() && needed.contains(&Method::Bdev))
            .then(|| now.instant + SHARED_INTERVAL);
        (self.needed, self.grown_up) = (needed, grown_up);
        let has_unidentified = self.ask(&taken, now.instant);
        Outcome { report: self.report(disks, has_unidentified), merged, opened }
    }

    /// No hook counts what the VM does: its records would stay as they are.
    fn uncounted(&mut self, now: Now) -> Outcome {
        let plan = Arc::clone(&self.plan);
        let of_disk = |disk| why_never(disk).unwrap_or_else(|| UNKNOWN_PROCESS.to_owned());
        let disks = plan.disks.iter();
        let disks = disks.map(|(storage, disk)| (*storage, CountedBy::Uncounted(of_disk(disk))));
        let disks = disks.collect();
        *self = Self { report: self.report.take(), ..Self::new(plan) };
        self.unknown_due = Some(now.instant + UNKNOWN_INTERVAL);
        Outcome { report: self.report(disks, false), ..Outcome::default() }
    }

    /// Keeps the report. Returns it if it says something new.
    fn report(
        &mut self,
        disks: Vec<(u32, CountedBy)>,
        has_unidentified: bool,
    ) -> Option<CountingReport> {
        let report = CountingReport {
            pid: self.plan.process.pid,
            vm: self.plan.vm,
            disks,
            has_unidentified,
        };
        let is_new = has_unidentified || self.report.as_ref() != Some(&report);
        if is_new {
            self.report = Some(report.clone());
        }
        is_new.then_some(report)
    }

    /// Whether a limit of a cgroup delays requests of the VM on one of these block devices: those of others may be taken for its own.
    pub(super) fn is_delayed_on(&self, devices: &BTreeSet<u32>) -> bool {
        let mut keys = self.plan.process.files.iter().map(|file| file.key(self.plan.vm));
        let is_one = |key: ImageKey| key.file == ImageKey::NO_FILE && devices.contains(&key.device);
        self.shared_due.is_some() && keys.any(is_one)
    }

    /// When the disks are to be counted again, whatever happens.
    pub(super) fn due(&self) -> Option<Instant> {
        let refused = self.refused.map(|(due, _)| due);
        let others = [self.grown_up, self.shared_due, self.unknown_due, refused];
        let others = others.into_iter().flatten();
        self.unidentified.values().filter_map(Backoff::due).chain(others).min()
    }

    /// Whether libvirt is to be asked now what a file is on which the VM does I/O.
    fn ask(&mut self, taken: &[ImageRecordInfo], now: Instant) -> bool {
        let slots: BTreeSet<_> =
            taken.iter().filter(|image| image.is_unassigned()).map(|image| image.slot).collect();
        self.unidentified.retain(|slot, _| slots.contains(slot));
        let mut asks = false;
        for slot in slots {
            let backoff =
                self.unidentified.entry(slot).or_insert_with(|| Backoff::new(FIRST_PAUSE, now));
            if backoff.due().is_some_and(|due| due <= now) {
                backoff.attempt(now);
                asks = true;
            }
        }
        asks
    }
}

impl<'a> Round<'a> {
    fn new(records: &'a Records, hooks: &'a dyn Works, now: Now, plan: &'a VmPlan) -> Self {
        let taken = records.images_of_vm(plan.vm);
        let (mut first_of, mut storages) = (HashMap::new(), HashMap::<_, BTreeSet<u32>>::new());
        for (at, image) in taken.iter().enumerate() {
            first_of.entry(image.key).or_insert(at);
            storages.entry(image.key).or_default().insert(image.storage);
        }
        let (mut of_key, mut shared) = (HashMap::new(), HashSet::new());
        let mut own: HashMap<u32, Vec<&OpenFile>> = HashMap::new();
        for file in &plan.process.files {
            let key = file.key(plan.vm);
            if *of_key.entry(key).or_insert(file.identity) != file.identity {
                shared.insert(key);
            }
            for storage in storages.get(&key).into_iter().flatten() {
                own.entry(*storage).or_default().push(file);
            }
        }
        Self {
            records,
            hooks,
            now,
            refused: None,
            files: BackingFiles::new(&plan.process),
            taken,
            first_of,
            own,
            shared,
            given: HashMap::new(),
            needed: BTreeSet::new(),
            grown_up: None,
            sharing: None,
            has_submitted: records.has_submitted(plan.vm),
            merged: Vec::new(),
        }
    }

    fn count(&mut self, planned: Planned<'a>) -> CountedBy {
        let Planned { plan, storage, disk } = planned;
        if let Some(why) = why_never(disk) {
            return CountedBy::Uncounted(why);
        }
        // Also if the image with these counts is not one of the disk's any more.
        let is_mixed =
            |image: &ImageRecordInfo| image.storage == storage && self.records.is_mixed(image.slot);
        if self.taken.iter().any(is_mixed) {
            return CountedBy::Uncounted(ClaimError::Mixed.to_string());
        }
        let (mut first, mut slots) = (None, Vec::new());
        let files = self.files_of(planned);
        // They are counted nevertheless, so that no request is missed once all are known.
        let mut failure = self.files.gap(&files, plan.is_of_domain).map(str::to_owned);
        for BackingFile { file, is_certain } in files {
            match self.count_file(file, planned) {
                Err(_) if !is_certain => {}
                Ok((method, records)) => {
                    first.get_or_insert(method);
                    slots.extend(records);
                }
                Err(why) => {
                    failure.get_or_insert(why);
                }
            }
        }
        if let Some(why) = failure {
            // The counts of a part of the disk would be too low.
            return CountedBy::Uncounted(why);
        }
        let Some((method, why)) = first else {
            if self.expect(planned) {
                return CountedBy::Pending;
            }
            return match plan.process.paths.get(&disk.resource) {
                Some(PathAnswer::Unknown(why)) => CountedBy::Uncounted(why.clone()),
                Some(PathAnswer::Closed(_) | PathAnswer::Open(_)) => {
                    CountedBy::Uncounted("the VM's process does not have it open".to_owned())
                }
                // The source of processes is asked.
                None => CountedBy::Pending,
            };
        };
        // Also the records of images that were part of the disk and are closed now.
        slots.extend(self.former(plan, storage, &slots));
        slots.sort_unstable();
        slots.dedup();
        CountedBy::Kernel(slots.into(), method, why)
    }

    /// The files of a disk that the process has open.
    fn files_of(&self, planned: Planned<'a>) -> Vec<BackingFile<'a>> {
        let Planned { plan, storage, disk } = planned;
        let is_used = |file: &OpenFile| {
            let image = self.first_of.get(&file.key(plan.vm)).and_then(|at| self.taken.get(*at));
            image.is_some_and(|image| [0, storage].contains(&image.storage))
        };
        let mut its = self.files.of_disk(disk, plan.is_of_domain, is_used);
        if plan.is_of_domain {
            return its;
        }
        // What was the disk's own and is still open, though nothing refers to it any more, as after a commit of the
        // image on top.
        let own = self.own.get(&storage).into_iter().flatten().copied();
        let is_new = |file: &&OpenFile| its.iter().all(|of| of.file.identity != file.identity);
        let own: Vec<_> = own.filter(is_new).collect();
        its.extend(own.into_iter().map(|file| BackingFile { file, is_certain: false }));
        its
    }

    /// The records of images that a disk was made of and is not any more. `present` are those of its present images.
    fn former(&mut self, plan: &VmPlan, storage: u32, present: &[ImageSlot]) -> Vec<ImageSlot> {
        debug_assert!(self.taken.iter().all(|image| image.vm() == plan.vm));
        let is_former =
            |image: &&ImageRecordInfo| image.storage == storage && !present.contains(&image.slot);
        let (mut former, mut closed) = (Vec::new(), Vec::new());
        for image in self.taken.iter().filter(is_former) {
            former.push(image.slot);
            if image.is_open() {
                self.records.close_image(image.slot);
            } else {
                closed.push(image.slot);
            }
        }
        // Not at once: requests may be in flight on an image that was closed just now.
        if let [into, others @ ..] = &closed[..]
            && closed.len() > CLOSED
        {
            self.records.merge_images(*into, others);
            for image in self.taken.iter_mut().filter(|image| others.contains(&image.slot)) {
                // No disk's: vmStorageIndex is below 2^31.
                image.storage = u32::MAX;
            }
            former.retain(|slot| !others.contains(slot));
            self.merged.extend_from_slice(others);
        }
        former
    }

    /// Has the first requests of a VMM counted that has just started and has not opened this disk yet. Whether it is
    /// as young as that.
    fn expect(&mut self, planned: Planned<'_>) -> bool {
        let Planned { plan, disk, .. } = planned;
        let age = self.now.since_boot_ns.saturating_sub(plan.process.started_ns);
        let Some(rest) = YOUNG.checked_sub(Duration::from_nanos(age)) else { return false };
        let is_block_device = match disk.source {
            StorageSource::Raw | StorageSource::Sparse => false,
            StorageSource::Block => true,
            _ => return false,
        };
        let methods = method::choose_for_new(self.hooks, is_block_device);
        self.needed.extend(methods);
        // The kernel creates records for files by itself; a block device must be registered.
        if is_block_device
            && let Some(PathAnswer::Closed(device)) = plan.process.paths.get(&disk.resource)
            && device.is_block_device()
        {
            let key = ImageKey { vm: plan.vm.0, device: device.device, file: device.file };
            // Without a record, the first requests are not counted; the disk says so once it is open.
            let _ = self.claim(key, methods[0].layer(), planned);
        }
        let grown_up = self.now.instant + rest + Duration::from_millis(1);
        self.grown_up = Some(self.grown_up.map_or(grown_up, |known| known.min(grown_up)));
        true
    }

    /// Has a file counted: by which method and why, and in which records. The error says why it cannot be.
    fn count_file(
        &mut self,
        file: &OpenFile,
        planned: Planned<'_>,
    ) -> Result<((Method, &'static str), Vec<ImageSlot>), String> {
        let Planned { plan, storage, disk } = planned;
        let process = &*plan.process;
        let key = file.key(plan.vm);
        if self.shared.contains(&key) {
            return Err(
                "the VM has a file of the same number open, in another subvolume".to_owned()
            );
        }
        let works = |method| self.hooks.works(method);
        let Choice { methods, layer, why } =
            method::choose(works, file, process, disk.submission, self.has_submitted)?;
        self.needed.extend(methods);
        if layer == Layer::Block {
            self.check_delays(key)?;
        }
        let method = (methods[0], why);
        // An image shared by two disks counts for the first one only.
        if *self.given.entry(key).or_insert(storage) != storage {
            return Ok((method, Vec::new()));
        }
        match self.claim(key, layer, planned) {
            Ok(slots) => Ok((method, slots)),
            Err(error) => {
                self.refused =
                    self.refused.or_else(|| Some(error).filter(|error| error.is_shortage()));
                Err(error.to_string())
            }
        }
    }

    /// Checks that requests on a block device which a limit of a cgroup delays can be known as the VM's.
    fn check_delays(&self, key: ImageKey) -> Result<(), String> {
        let Some(sharing) = &self.sharing else { return Ok(()) };
        // Another VM with other devices makes no request on this one.
        let is_apart = |pid: &u32| self.records.is_vm_without(*pid, key.device);
        let other = match sharing {
            None => "any process".to_owned(),
            Some(others) => match others.iter().find(|pid| !is_apart(pid)) {
                Some(other) => format!("process {other}"),
                None => return Ok(()),
            },
        };
        self.records.mix_image(key);
        Err(format!("a limit of its cgroup delays requests that may be those of {other} there"))
    }

    /// Claims the records of an image for a disk.
    fn claim(
        &mut self,
        key: ImageKey,
        layer: Layer,
        planned: Planned<'_>,
    ) -> Result<Vec<ImageSlot>, ClaimError> {
        let Planned { plan, storage, .. } = planned;
        let Self { records, taken, first_of, .. } = self;
        let slots = || records.images_of(key).collect::<Vec<_>>();
        if plan.may_be_of_domain {
            // libvirt is about to report to which disk the image belongs.
            return records.claim_image(key, layer).map(|_| slots());
        }
        let mut assign = |slot: ImageSlot| {
            records.assign_image(slot, storage);
            match taken.iter_mut().find(|image| image.slot == slot) {
                Some(image) => image.storage = storage,
                None => {
                    first_of.entry(key).or_insert(taken.len());
                    taken.push(ImageRecordInfo { slot, key, storage });
                }
            }
        };
        for slot in slots() {
            match records.storage_of_image(slot) {
                of if of == 0 || of == storage => assign(slot),
                // What was counted for another disk stays with that disk.
                _ if plan.is_of_domain => records.close_image(slot),
                _ => {
                    records.claim_image(key, layer)?;
                    return Ok(slots());
                }
            }
        }
        records.claim_image(key, layer)?;
        let slots = slots();
        slots.iter().for_each(|&slot| assign(slot));
        Ok(slots)
    }
}

/// Why the kernel can count nothing of a disk, whatever the VM's process does.
fn why_never(disk: &DomainDisk) -> Option<String> {
    if disk.resource.is_empty() {
        let why = match disk.media {
            StorageMedia::HardDisk => "its file or service is not known",
            _ => "the drive is empty",
        };
        return Some(why.to_owned());
    }
    // Its name is no path, and a backing file on this host is a part of it only.
    (disk.source == StorageSource::Network).then(|| "it is reached by the network".to_owned())
}

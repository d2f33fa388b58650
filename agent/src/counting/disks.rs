//! How the kernel is to count the images of disks, and in which records.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kvmeter_common::{ImageKey, Layer};

use super::{
    backing_files::{DiskFile, DiskFiles},
    method::{self, Choice},
};
use crate::{
    counters::{ImageRecordInfo, ImageSlot, Records, VmSlot, since_boot_ns},
    inventory::{
        CountedBy, DomainDisk, FileIdentity, OpenFile, StorageSource, VmProcess, retry::Questions,
    },
    probe::{ImageHooks, Method},
};

/// A VMM that is younger may not have opened its disks yet.
const YOUNG_NS: u64 = 3_000_000_000;

/// So many records of what a disk was made of once are kept apart.
const FORMER: usize = 8;

/// After the first question to libvirt what a file is that a VM does I/O on: it knows a new image only after QEMU has it.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// So soon after hooks could not be attached a view is made anew.
const UNATTACHED: Duration = Duration::from_millis(20);

/// The hooks of images, for all who may need them.
pub type SharedHooks = Arc<Mutex<ImageHooks>>;

/// A disk as its row will show it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted<'a> {
    pub(crate) process: &'a VmProcess,
    /// vmStorageIndex.
    pub(crate) storage: u32,
    pub(crate) disk: &'a DomainDisk,
    /// libvirt knows the VM. A process alone may show the same disk by another name, as long as libvirt is not there.
    pub(crate) is_of_domain: bool,
    /// libvirt is there, and may be about to tell of the VM.
    pub(crate) may_be_of_domain: bool,
}

/// Has the images of disks counted.
#[derive(Debug)]
pub(crate) struct Images {
    records: Arc<Records>,
    hooks: SharedHooks,
    /// What one view needs, from [`begin`](Self::begin) to [`end`](Self::end).
    round: Round,
    /// Images that belong to no disk that is known, and what was done about them.
    asked: HashMap<ImageSlot, Questions>,
    /// When a view is to be made anew, whatever happens.
    again: Option<Instant>,
}

#[derive(Debug, Default)]
struct Round {
    needed: BTreeSet<Method>,
    /// The records that are in use.
    taken: HashMap<VmSlot, Vec<ImageRecordInfo>>,
    /// The disk to which an image was given.
    given: HashMap<ImageKey, u32>,
    files: DiskFiles,
    /// When the first VMM is not young any more that has not opened a disk.
    soon: Option<Instant>,
}

impl Images {
    pub(crate) fn new(records: Arc<Records>, hooks: SharedHooks) -> Self {
        Self { records, hooks, round: Round::default(), asked: HashMap::new(), again: None }
    }

    /// A new view is about to be made.
    pub(crate) fn begin(&mut self) {
        let files = std::mem::take(&mut self.round.files).begin_anew();
        self.round = Round { files, ..Round::default() };
        for image in self.records.image_records() {
            self.round.taken.entry(image.vm()).or_default().push(image);
        }
    }

    /// Has a disk counted.
    pub(crate) fn count(&mut self, counted: Counted<'_>) -> CountedBy {
        let Counted { process, storage, disk, is_of_domain, .. } = counted;
        let Some(vm) = process.slot else {
            return CountedBy::Nobody("the VM is not counted".to_owned());
        };
        if disk.resource.is_empty() {
            return CountedBy::Nobody("the drive is empty".to_owned());
        }
        let (mut first, mut failure, mut slots) = (None, None, Vec::new());
        let Round { taken, files, .. } = &mut self.round;
        let taken = taken.get(&vm).map_or(&[][..], Vec::as_slice);
        let is_used = |file: &OpenFile| {
            let is_its = |image: &&ImageRecordInfo| image.key == file.key(vm);
            taken.iter().find(is_its).is_some_and(|image| [0, storage].contains(&image.storage))
        };
        let mut its = files.of_disk(process, disk, is_of_domain, is_used);
        // What was its own and is open still, though nothing leads there any more, as after a commit of what was on top.
        let is_own = |file: &&OpenFile| {
            let is_it =
                |image: &ImageRecordInfo| image.key == file.key(vm) && image.storage == storage;
            taken.iter().any(is_it) && its.iter().all(|known| known.file.identity != file.identity)
        };
        let own: Vec<_> = process.files.iter().filter(|_| !is_of_domain).filter(is_own).collect();
        its.extend(own.into_iter().map(|file| DiskFile { file, is_certain: false }));
        for DiskFile { file, is_certain } in its {
            match self.count_file(vm, file, counted) {
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
            // A part of it would be less than what is true.
            return CountedBy::Nobody(why);
        }
        let Some((method, why)) = first else {
            if self.expect(vm, counted) {
                return CountedBy::Soon;
            }
            return CountedBy::Nobody(match disk.source {
                StorageSource::Network => "it is reached by the network".to_owned(),
                _ => "the VM's process does not have it open".to_owned(),
            });
        };
        // Also what it was counted in before: an image that is closed now was part of it.
        slots.extend(self.former(vm, storage, &slots));
        slots.sort_unstable();
        slots.dedup();
        CountedBy::Kernel(slots.into(), method, why)
    }

    /// The records of all that a disk was made of once and is not any more; `now` are those of what it is made of.
    fn former(&mut self, vm: VmSlot, storage: u32, now: &[ImageSlot]) -> Vec<ImageSlot> {
        let Some(taken) = self.round.taken.get_mut(&vm) else { return Vec::new() };
        let is_former =
            |image: &&ImageRecordInfo| image.storage == storage && !now.contains(&image.slot);
        let (mut former, mut closed) = (Vec::new(), Vec::new());
        for image in taken.iter().filter(is_former) {
            former.push(image.slot);
            if image.is_open() {
                self.records.close_image(image.slot);
            } else {
                closed.push(image.slot);
            }
        }
        // Not at once: requests may be under way on an image that was closed just now.
        if let [into, others @ ..] = &closed[..]
            && closed.len() > FORMER
        {
            self.records.merge_images(*into, others);
            taken.retain(|image| !others.contains(&image.slot));
            former.retain(|slot| !others.contains(slot));
        }
        former
    }

    /// The view is made: what no disk needs is not hooked any more. Whether one of these VMs does I/O on a file of
    /// which it is not known what it is, so that somebody should be asked.
    pub(crate) fn end(&mut self) -> BTreeSet<VmSlot> {
        let Self { round, asked, .. } = self;
        let loose = round.taken.values().flatten().filter(|image| image.is_unassigned());
        let loose: HashMap<_, _> = loose.map(|image| (image.slot, image.vm())).collect();
        asked.retain(|slot, _| loose.contains_key(slot));
        let mut wanted = BTreeSet::new();
        let now = Instant::now();
        for (slot, vm) in loose {
            let asked = asked.entry(slot).or_insert_with(|| Questions::new(FIRST_PAUSE));
            if asked.due().is_some_and(|due| due <= Instant::now()) {
                asked.ask();
                wanted.insert(vm);
            }
        }
        let needed = std::mem::take(&mut self.round.needed);
        let works = self.hooks().set_attached(|method| needed.contains(&method));
        // Hooks that do not work at all, or not yet.
        self.again = if works { self.round.soon } else { Some(now + UNATTACHED) };
        wanted
    }

    /// When somebody is to be asked again, or what is known is another view.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.asked.values().filter_map(Questions::due).chain(self.again).min()
    }

    fn hooks(&self) -> std::sync::MutexGuard<'_, ImageHooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VMM that has just begun will open its disk soon, and its first requests are to be counted, too. Whether it
    /// has.
    fn expect(&mut self, vm: VmSlot, counted: Counted<'_>) -> bool {
        let Counted { process, disk, .. } = counted;
        let age = since_boot_ns().saturating_sub(process.started_ns);
        if age > YOUNG_NS {
            return false;
        }
        let is_block_device = match disk.source {
            StorageSource::Raw | StorageSource::Sparse => false,
            StorageSource::Block => true,
            _ => return false,
        };
        let methods = method::of_new(&self.hooks(), is_block_device);
        self.round.needed.extend(methods);
        // What else than a file a request may be for, the kernel is told.
        if is_block_device
            && let Ok(Some(device)) = FileIdentity::at(&disk.resource)
            && device.is_block_device()
        {
            let key = ImageKey { vm: vm.0, device: device.device, file: device.file };
            self.take(key, methods[0].layer(), counted);
        }
        let grown_up = Instant::now() + Duration::from_nanos(YOUNG_NS - age + 1_000_000);
        self.round.soon = Some(self.round.soon.map_or(grown_up, |soon| soon.min(grown_up)));
        true
    }

    /// Has an image counted: by which method, and in which records. Why it cannot be, else.
    fn count_file(
        &mut self,
        vm: VmSlot,
        file: &OpenFile,
        counted: Counted<'_>,
    ) -> Result<((Method, &'static str), Vec<ImageSlot>), String> {
        let Counted { process, storage, disk, .. } = counted;
        let key = file.key(vm);
        let shares_number =
            |other: &OpenFile| other.key(vm) == key && other.identity != file.identity;
        if process.files.iter().any(shares_number) {
            return Err(
                "the VM has a file of the same number open, in another subvolume".to_owned()
            );
        }
        let Choice { methods, layer, why } = {
            let hooks = self.hooks();
            method::of_file(|method| hooks.availability(method), file, process, disk.submission)?
        };
        self.round.needed.extend(&methods);
        let method = (methods[0], why);
        // Of an image that two disks share, nobody can say which one a request is for.
        if *self.round.given.entry(key).or_insert(storage) != storage {
            return Ok((method, Vec::new()));
        }
        match self.take(key, layer, counted) {
            Some(slots) => Ok((method, slots)),
            None => Err("no record is free for it".to_owned()),
        }
    }

    /// Has an image counted for a disk, in records of its own. Which; `None`: none is free.
    fn take(
        &mut self,
        key: ImageKey,
        layer: Layer,
        counted: Counted<'_>,
    ) -> Option<Vec<ImageSlot>> {
        let Counted { storage, is_of_domain, may_be_of_domain, .. } = counted;
        let Self { records, round, .. } = self;
        let slots = || records.images_of(key).collect::<Vec<_>>();
        if may_be_of_domain {
            // Which disk it is, libvirt is about to say.
            return records.claim_image(key, layer).map(|_| slots());
        }
        let taken = round.taken.entry(VmSlot(key.vm)).or_default();
        let mut assign = |slot: ImageSlot| {
            records.assign_image(slot, storage);
            match taken.iter_mut().find(|image| image.slot == slot) {
                Some(image) => image.storage = storage,
                None => taken.push(ImageRecordInfo { slot, key, storage }),
            }
        };
        for slot in slots() {
            match records.storage_of_image(slot) {
                of if of == 0 || of == storage => assign(slot),
                // What it was for another disk stays that one's.
                _ if is_of_domain => records.close_image(slot),
                _ => return Some(slots()),
            }
        }
        records.claim_image(key, layer)?;
        let slots = slots();
        slots.iter().for_each(|&slot| assign(slot));
        Some(slots)
    }
}

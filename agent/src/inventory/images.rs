//! Which of the files that a VM's process has open belong to which disk, and how the kernel is to count them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kvmeter_common::{ImageKey, Route};

use super::{DomainDisk, FileIdentity, OpenFile, StorageSource, Submission, VmProcess};
use crate::{
    counters::{ImageSlot, Records, TakenImage, VmSlot, since_boot_ns},
    probe::{ImageHooks, Method},
};

/// A VMM that is younger may not have opened its disks yet.
const YOUNG_NS: u64 = 3_000_000_000;

/// How often libvirt is asked what a file is that a VM does I/O on: it knows a new image only after QEMU has it.
const QUESTIONS: u32 = 8;

/// After the first question; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// The hooks of images, for all who may need them.
pub type SharedHooks = Arc<Mutex<ImageHooks>>;

/// Where a disk's I/O is counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CountedBy {
    /// By the kernel: the records of its images, and the method of the first.
    Kernel(Arc<[ImageSlot]>, Method),
    /// Not by the kernel, for this reason.
    Nobody(String),
}

/// Has the images of disks counted.
#[derive(Debug)]
pub(super) struct Images {
    records: Arc<Records>,
    hooks: SharedHooks,
    /// What one view needs, from [`begin`](Self::begin) to [`end`](Self::end).
    round: Round,
    /// Images that belong to no disk that is known, and what was done about them.
    asked: HashMap<ImageSlot, Asked>,
}

/// How often libvirt was asked what an image is, and when it is to be asked again.
#[derive(Clone, Copy, Debug)]
struct Asked {
    times: u32,
    due: Instant,
}

#[derive(Debug, Default)]
struct Round {
    needed: BTreeSet<Method>,
    /// The records that are in use.
    taken: HashMap<VmSlot, Vec<TakenImage>>,
    /// The disk to which an image was given.
    given: HashMap<ImageKey, u32>,
}

impl Images {
    pub(super) fn new(records: Arc<Records>, hooks: SharedHooks) -> Self {
        Self { records, hooks, round: Round::default(), asked: HashMap::new() }
    }

    /// A new view is about to be made.
    pub(super) fn begin(&mut self) {
        self.round = Round::default();
        for image in self.records.taken_images() {
            self.round.taken.entry(image.vm).or_default().push(image);
        }
    }

    /// Has a disk counted that has this vmStorageIndex.
    pub(super) fn count(
        &mut self,
        process: &VmProcess,
        storage: u32,
        disk: &DomainDisk,
    ) -> CountedBy {
        let Some(vm) = process.slot else {
            return CountedBy::Nobody("the VM is not counted".to_owned());
        };
        if disk.resource.is_empty() {
            return CountedBy::Nobody("the drive is empty".to_owned());
        }
        let (mut first, mut failure) = (None, None);
        for path in std::iter::once(&disk.resource).chain(&disk.others) {
            let Some(file) = find(&process.files, path) else { continue };
            match self.count_file(vm, storage, file, process, disk.submission) {
                Ok(method) => {
                    first.get_or_insert(method);
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
        let Some(method) = first else {
            self.expect(vm, storage, process, disk);
            return CountedBy::Nobody(match disk.source {
                StorageSource::Network => "it is reached by the network".to_owned(),
                _ => "the VM's process does not have it open".to_owned(),
            });
        };
        // Also what it was counted in before: an image that is closed now was part of it.
        let its = self.round.taken.get(&vm).into_iter().flatten();
        let mut slots: Vec<_> =
            its.filter(|image| image.storage == storage).map(|image| image.slot).collect();
        slots.sort_unstable();
        slots.dedup();
        CountedBy::Kernel(slots.into(), method)
    }

    /// The view is made: what no disk needs is not hooked any more. Whether one of these VMs does I/O on a file of
    /// which it is not known what it is, so that somebody should be asked.
    pub(super) fn end(&mut self) -> BTreeSet<VmSlot> {
        let Self { round, asked, .. } = self;
        let loose = |image: &&TakenImage| image.is_open && image.storage == 0;
        let loose: HashMap<ImageSlot, VmSlot> = round
            .taken
            .values()
            .flatten()
            .filter(loose)
            .map(|image| (image.slot, image.vm))
            .collect();
        asked.retain(|slot, _| loose.contains_key(slot));
        let mut wanted = BTreeSet::new();
        let now = Instant::now();
        for (slot, vm) in loose {
            let asked = asked.entry(slot).or_insert(Asked { times: 0, due: now });
            if asked.times < QUESTIONS && asked.due <= now {
                asked.due = now + FIRST_PAUSE * 2_u32.pow(asked.times);
                asked.times += 1;
                wanted.insert(vm);
            }
        }
        let needed = std::mem::take(&mut self.round.needed);
        self.hooks().need(|method| needed.contains(&method));
        wanted
    }

    /// When somebody is to be asked again.
    pub(super) fn due(&self) -> Option<Instant> {
        let open = self.asked.values().filter(|asked| asked.times < QUESTIONS);
        open.map(|asked| asked.due).min()
    }

    fn hooks(&self) -> std::sync::MutexGuard<'_, ImageHooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A VMM that has just begun will open its disk soon; its first requests are to be counted, too.
    fn expect(&mut self, vm: VmSlot, storage: u32, process: &VmProcess, disk: &DomainDisk) {
        if since_boot_ns().saturating_sub(process.started_ns) > YOUNG_NS {
            return;
        }
        match disk.source {
            StorageSource::Raw | StorageSource::Sparse => {
                self.round.needed.insert(Method::Dio);
            }
            StorageSource::Block => {
                self.round.needed.insert(Method::Bdev);
                if let Some(device) = FileIdentity::at(&disk.resource)
                    && device.file == ImageKey::NO_FILE
                {
                    let key = ImageKey { vm: vm.0, device: device.device, file: device.file };
                    self.take(vm, storage, key, Route::Block);
                }
            }
            _ => {}
        }
    }

    /// Has an image counted. Why it cannot be, else.
    fn count_file(
        &mut self,
        vm: VmSlot,
        storage: u32,
        file: &OpenFile,
        process: &VmProcess,
        submission: Submission,
    ) -> Result<Method, String> {
        let hooks = Arc::clone(&self.hooks);
        let hooks = hooks.lock().unwrap_or_else(PoisonError::into_inner);
        let can = |method: Method| {
            hooks
                .can(method)
                .map(|()| method)
                .map_err(|why| format!("it needs {}, which does not work: {why}", method.name()))
        };
        let mut needed = BTreeSet::new();
        let is_direct =
            file.is_direct && !(submission == Submission::IoUring && process.has_io_uring);
        let (route, method) = match (is_direct, file.is_block_device, file.has_iomap) {
            (true, true, _) if hooks.can(Method::Bdev).is_ok() => (Route::Block, Method::Bdev),
            (true, false, true) if hooks.can(Method::Dio).is_ok() => (Route::Direct, Method::Dio),
            _ if submission == Submission::Native => {
                return Err(
                    "its requests go by io_submit(2) to a file whose end no hook sees".to_owned()
                );
            }
            _ => {
                let (by_calls, by_rings) = match submission {
                    Submission::IoUring if process.has_io_uring => (false, true),
                    Submission::Threads => (true, false),
                    _ => (true, process.has_io_uring),
                };
                if by_calls {
                    needed.insert(can(Method::Syscall)?);
                }
                if by_rings {
                    needed.insert(can(Method::IoUring)?);
                }
                (Route::Call, if by_calls { Method::Syscall } else { Method::IoUring })
            }
        };
        drop(hooks);
        needed.insert(method);
        let file_number = file.identity.file;
        let key = ImageKey { vm: vm.0, device: file.device, file: file_number };
        match self.round.given.get(&key) {
            // Of an image that two disks share, nobody can say which one a request is for.
            Some(&other) if other != storage => {}
            _ => {
                self.round.given.insert(key, storage);
                if !self.take(vm, storage, key, route) {
                    return Err("no record is free for it".to_owned());
                }
            }
        }
        self.round.needed.extend(needed);
        Ok(method)
    }

    /// Has an image counted for a disk in a record of its own.
    fn take(&mut self, vm: VmSlot, storage: u32, key: ImageKey, route: Route) -> bool {
        let taken = self.round.taken.entry(vm).or_default();
        for slot in self.records.images_of(key).collect::<Vec<_>>() {
            let known = taken.iter().find(|image| image.slot == slot).map(|image| image.storage);
            if known.is_some_and(|of| of != 0 && of != storage) {
                // What it was for another disk stays that one's.
                self.records.close_image(slot);
            } else {
                // Also what was counted by another way than from now on.
                self.records.assign_image(slot, storage);
                if let Some(image) = taken.iter_mut().find(|image| image.slot == slot) {
                    image.storage = storage;
                }
            }
        }
        if self.records.take_image(key, route).is_none() {
            return false;
        }
        for slot in self.records.images_of(key) {
            self.records.assign_image(slot, storage);
            match taken.iter_mut().find(|image| image.slot == slot) {
                Some(image) => image.storage = storage,
                None => taken.push(TakenImage { slot, vm, storage, is_open: true }),
            }
        }
        true
    }
}

/// The file of this path. The process may have it by another name, or have its own root: then it is the one that the
/// path leads to here, or the only one with that last name.
fn find<'a>(files: &'a [OpenFile], path: &str) -> Option<&'a OpenFile> {
    let by_path = files.iter().find(|file| file.path == path);
    let by_identity = || {
        let identity = FileIdentity::at(path)?;
        files.iter().find(|file| file.identity == identity)
    };
    let by_name = || {
        let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
        let mut same = files.iter().filter(|file| name(&file.path) == name(path));
        same.next().filter(|_| same.next().is_none())
    };
    by_path.or_else(by_identity).or_else(by_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, file: u64) -> OpenFile {
        OpenFile {
            path: path.to_owned(),
            identity: FileIdentity { device: 1, file },
            mount: 1,
            device: 1,
            is_block_device: false,
            is_direct: false,
            has_iomap: true,
        }
    }

    #[test]
    fn a_file_is_found_by_its_path_or_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, b"").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        // It is among the names that the kernel knows.
        let identity = FileIdentity::at(&real.to_string_lossy()).unwrap();
        let files = [
            file("/x/disk", 1),
            OpenFile { identity, ..file("/elsewhere/real", 0) },
            file("/y/disk", 2),
            file("/jail/root.ext4", 3),
        ];
        let found = |path: &str| find(&files, path).map(|file| file.path.as_str());
        assert_eq!(found("/y/disk"), Some("/y/disk"));
        assert_eq!(found(&link.to_string_lossy()), Some("/elsewhere/real"));
        assert_eq!(found("root.ext4"), Some("/jail/root.ext4"));
        assert_eq!(found("disk"), None, "there are two of that name");
        assert_eq!(found("/none"), None);
    }
}

//! Which images of a process are to be read for their headers, and which have been: for each storage apart, so that one that hangs delays
//! what is on it, and no other. Reads no clock: the time is a parameter.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    header_slots::Storage,
    image_headers::{HeaderReport, ImageName, MAX_NAME_BYTES},
};
use crate::inventory::{DiskSize, FileIdentity, ImageHeader, VmProcess, retry::Backoff};

/// First retry delay for reading image headers.
const FIRST_RETRY: Duration = Duration::from_millis(20);

/// Pause after a scan for which the agent lacked descriptors, memory or a thread.
const AFTER_SHORTAGE: Duration = Duration::from_secs(1);

/// What is known of the images of one process.
#[derive(Debug, Default)]
pub(super) struct HeaderScans {
    of_storage: BTreeMap<Storage, StorageScan>,
    /// Headers of open images.
    pub(super) headers: Vec<ImageHeader>,
    /// Sizes of open files that are not in the kernel's memory.
    pub(super) sizes: Vec<(FileIdentity, DiskSize)>,
    /// Images that have been read, with or without a header.
    read: HashSet<FileIdentity>,
    /// Images whose last read failed.
    failed: HashSet<FileIdentity>,
    /// Paths by which the headers that were read last name other images: [`MAX_NAME_BYTES`] at most.
    names: Vec<ImageName>,
}

/// The scans of a process's files of one storage.
#[derive(Debug)]
struct StorageScan {
    /// What was open at the last scan, and what of it was an image to be read.
    scanned: Option<Batch>,
    /// When the last scan began.
    began: Option<Instant>,
    is_running: bool,
    /// No file of this storage is open any more.
    is_left: bool,
    /// The agent lacked what the last scan needs.
    is_short: bool,
    /// Headers on another storage name images of this one by paths that the last scan did not know.
    is_renamed: bool,
    /// Retries with the same open files.
    backoff: Backoff,
}

/// Open files of one storage.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Batch {
    /// Images whose headers are to be read.
    pub(super) images: Vec<FileIdentity>,
    /// Files whose sizes are not in the kernel's memory.
    pub(super) sizes: Vec<FileIdentity>,
}

/// Why files are read again that have not changed.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Again {
    /// The VM does I/O on an image of no disk: the header may be written since.
    pub(super) is_unassigned: bool,
    /// A scan that began before does not tell.
    pub(super) since: Option<Instant>,
}

impl HeaderScans {
    /// The images whose headers are to be read: all open files that may be images, or if a disk is declared raw of which it is not
    /// known which file it is, the images of disks and what is below them. The guest of a raw image controls what stands in the place
    /// of a header.
    fn images(&self, vm: &VmProcess) -> Vec<FileIdentity> {
        let raw: HashSet<_> = vm.raw_files().collect();
        let named = vm.image_names().into_iter().map(|(image, _)| image);
        let mut images: Vec<FileIdentity> = named.collect();
        if vm.is_raw_unclear() {
            images = self.with_those_below(images);
        } else {
            images.extend(vm.files.iter().map(|file| file.identity));
        }
        let mut seen = HashSet::new();
        images.retain(|image| !raw.contains(image) && seen.insert(*image));
        images
    }

    /// The scans that are to begin now, by storage, and whether the process is to be scanned again later. A scan that begins is to be
    /// reported to [`began`](Self::began).
    pub(super) fn due(
        &mut self,
        vm: &VmProcess,
        again: Again,
        now: Instant,
    ) -> (Vec<(Storage, Batch)>, bool) {
        let mut batches: BTreeMap<Storage, Batch> = BTreeMap::new();
        for file in vm.files.iter().filter(|file| !file.answers_from_memory) {
            batches.entry(Storage::of(file.identity)).or_default().sizes.push(file.identity);
        }
        for image in self.images(vm) {
            batches.entry(Storage::of(image)).or_default().images.push(image);
        }
        self.of_storage.retain(|storage, scan| {
            scan.is_left = !batches.contains_key(storage);
            scan.is_running || !scan.is_left
        });
        let (mut due, mut is_moving) = (Vec::new(), false);
        for (storage, batch) in batches {
            let scan = self.of_storage.entry(storage).or_insert_with(|| StorageScan {
                scanned: None,
                began: None,
                is_running: false,
                is_left: false,
                is_short: false,
                is_renamed: false,
                backoff: Backoff::new(FIRST_RETRY, now),
            });
            // At most one scan of a process and storage at a time.
            if scan.is_running {
                continue;
            }
            let is_outdated =
                again.since.is_some_and(|since| scan.began.is_none_or(|at| at < since));
            if scan.scanned.as_ref() != Some(&batch) || is_outdated {
                scan.backoff = Backoff::new(FIRST_RETRY, now);
            } else if scan.is_short {
                match scan.began.map(|at| at + AFTER_SHORTAGE) {
                    Some(at) if at > now => is_moving = true,
                    _ => due.push((storage, batch)),
                }
                continue;
            } else if !again.is_unassigned && !scan.is_renamed {
                continue;
            }
            match scan.backoff.due() {
                None => {}
                // The VMM creates an image first, and writes the backing file into its header later.
                Some(due) if due > now => is_moving = true,
                Some(_) => due.push((storage, batch)),
            }
        }
        (due, is_moving)
    }

    /// A scan has begun.
    pub(super) fn began(&mut self, storage: Storage, batch: Batch, now: Instant) {
        if let Some(scan) = self.of_storage.get_mut(&storage) {
            (scan.scanned, scan.began, scan.is_running) = (Some(batch), Some(now), true);
            scan.is_renamed = false;
            if !scan.is_short {
                scan.backoff.attempt(now);
            }
        }
    }

    /// Takes the result of a scan.
    pub(super) fn take(&mut self, report: HeaderReport, vm: &VmProcess) {
        if let Some(scan) = self.of_storage.get_mut(&report.storage) {
            (scan.is_running, scan.is_short) = (false, report.is_short);
        }
        if report.is_short {
            return;
        }
        let open: HashSet<_> = vm.files.iter().map(|file| file.identity).collect();
        let is_other = |file: &FileIdentity| Storage::of(*file) != report.storage;
        // Keeps the known header of an open image that could not be read this time.
        let is_read = |image: &FileIdentity| report.read.contains(image);
        self.headers.retain(|old| open.contains(&old.image) && !is_read(&old.image));
        self.headers.extend(report.headers);
        self.sizes.retain(|(file, _)| open.contains(file) && is_other(file));
        self.sizes.extend(report.sizes);
        self.read.extend(&report.read);
        self.read.retain(|image| open.contains(image));
        self.failed.retain(|image| open.contains(image) && !report.read.contains(image));
        self.failed.extend(report.failed.iter().filter(|image| !self.read.contains(image)));
        self.take_names(&report.read, report.names, report.storage);
        self.names.retain(|name| open.contains(&name.image) && open.contains(&name.above));
    }

    /// Replaces the paths that the headers of these images contain.
    fn take_names(
        &mut self,
        read: &HashSet<FileIdentity>,
        names: Vec<ImageName>,
        storage: Storage,
    ) {
        let before = std::mem::take(&mut self.names);
        let known: HashSet<&ImageName> = before.iter().collect();
        for name in names.iter().filter(|name| !known.contains(*name)) {
            let of = Storage::of(name.image);
            // A scan of the same storage has followed the path itself.
            if let Some(scan) = self.of_storage.get_mut(&of).filter(|_| of != storage) {
                scan.is_renamed = true;
            }
        }
        let old = before.into_iter().filter(|name| !read.contains(&name.above));
        let mut bytes = 0;
        self.names = names.into_iter().chain(old).collect();
        self.names.retain(|name| {
            bytes += name.path.len();
            bytes <= MAX_NAME_BYTES
        });
    }

    /// Since when all present images have been read, wherever they are; `None` = some have not, or are being read.
    pub(super) fn complete_from(&self) -> Option<Instant> {
        let is_complete =
            |scan: &StorageScan| !scan.is_running && !scan.is_short && scan.scanned.is_some();
        // What is read of files that have been closed does not matter, though it may hang.
        let all = || self.of_storage.values().filter(|scan| !scan.is_left);
        all().map(|scan| scan.began).min().flatten().filter(|_| all().all(is_complete))
    }

    /// The paths by which the images of a process are named: by the options, and by the headers of other images.
    pub(super) fn names(&self, vm: &VmProcess) -> Vec<(FileIdentity, String)> {
        let of_headers = self.names.iter().map(|name| (name.image, name.path.clone()));
        vm.image_names().into_iter().chain(of_headers).collect()
    }

    /// Completes what is known of the process's disks.
    pub(super) fn complete(&self, vm: &mut VmProcess) {
        vm.note_sizes(&self.sizes);
        vm.note_headers(&self.headers);
        let disks = vm.devices.disks.iter().filter(|disk| disk.chain_is_in_image);
        let images = disks.flat_map(|disk| disk.paths().filter_map(|path| vm.file_at(path)));
        let images = self.with_those_below(images.map(|file| file.identity).collect());
        let unread = images.into_iter().filter(|image| !self.read.contains(image));
        let (failed, unread) = unread.partition(|image| self.failed.contains(image));
        (vm.unread, vm.unreadable) = (unread, failed);
    }

    /// Images, and those that the known headers say are below them, without raw ones.
    fn with_those_below(&self, mut images: Vec<FileIdentity>) -> Vec<FileIdentity> {
        let mut seen: HashSet<_> = images.iter().copied().collect();
        let headers: HashMap<_, _> =
            self.headers.iter().map(|header| (header.image, header)).collect();
        let mut at = 0;
        while let Some(image) = images.get(at) {
            if let Some(header) = headers.get(image) {
                let below = header.below.iter().filter(|below| !header.raw.contains(below));
                images.extend(below.filter(|below| seen.insert(**below)));
            }
            at += 1;
        }
        images
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DomainDisk, OpenFile, PathAnswer};

    const LOCAL: Storage = Storage::Filesystem(1);
    const SERVER: Storage = Storage::Filesystem(2);

    fn image(storage: Storage, number: u64) -> FileIdentity {
        let Storage::Filesystem(device) = storage else { unreachable!() };
        FileIdentity { device, file: number }
    }

    /// A VM with these files open, of which the disks have the first `disks`.
    fn vm(files: &[FileIdentity], disks: usize, chain_is_in_image: bool) -> VmProcess {
        let mut vm = VmProcess::default();
        for (at, identity) in files.iter().enumerate() {
            let path = format!("/{at}");
            vm.files.push(OpenFile {
                path: path.clone(),
                identity: *identity,
                mount: 1,
                device: identity.device,
                is_direct: false,
                is_writable: true,
                has_write_lock: true,
                has_iomap: false,
                answers_from_memory: identity.device == 1,
            });
            if at < disks {
                vm.paths.insert(path.clone(), PathAnswer::Open(*identity));
                let disk = super::super::devices::disk(&path, None, "qcow2", false);
                vm.devices.disks.push(DomainDisk { resource: path, chain_is_in_image, ..disk });
            }
        }
        vm
    }

    fn header(image: FileIdentity, below: &[FileIdentity]) -> ImageHeader {
        ImageHeader { image, size: 1 << 30, below: below.to_vec(), raw: Vec::new() }
    }

    fn report(storage: Storage, read: &[FileIdentity], headers: Vec<ImageHeader>) -> HeaderReport {
        HeaderReport {
            pid: 1,
            start_ticks: 1,
            storage,
            headers,
            read: read.iter().copied().collect(),
            failed: Vec::new(),
            names: Vec::new(),
            sizes: Vec::new(),
            is_short: false,
        }
    }

    /// Begins what is due. Returns the storages.
    fn begin(scans: &mut HeaderScans, vm: &VmProcess, again: Again, now: Instant) -> Vec<Storage> {
        let (due, _) = scans.due(vm, again, now);
        due.into_iter()
            .map(|(storage, batch)| {
                scans.began(storage, batch, now);
                storage
            })
            .collect()
    }

    #[test]
    fn a_storage_that_hangs_delays_what_is_on_it_and_no_other() {
        let (now, again) = (Instant::now(), Again::default());
        let (local, base) = (image(LOCAL, 1), image(LOCAL, 2));
        let files = [local, image(SERVER, 3), base];
        let vm = vm(&files, 2, true);
        let mut scans = HeaderScans::default();
        assert_eq!(begin(&mut scans, &vm, again, now), [LOCAL, SERVER]);
        let unread = |scans: &HeaderScans| {
            let mut vm = vm.clone();
            scans.complete(&mut vm);
            vm.unread
        };
        assert_eq!(unread(&scans), [local, files[1]]);
        scans.take(report(LOCAL, &[local, base], vec![header(local, &[base])]), &vm);
        assert_eq!(unread(&scans), [files[1]], "the other disk is known");
        assert_eq!(scans.complete_from(), None);
        // Whatever wants them read again does not wait for the server.
        let again = Again { since: Some(now + Duration::from_secs(1)), is_unassigned: false };
        let later = now + Duration::from_secs(2);
        assert_eq!(begin(&mut scans, &vm, again, later), [LOCAL]);
        scans.take(report(LOCAL, &[local, base], vec![header(local, &[base])]), &vm);
        assert!(begin(&mut scans, &vm, again, later).is_empty(), "once");
        scans.take(report(SERVER, &files[1..2], Vec::new()), &vm);
        assert_eq!((unread(&scans), scans.complete_from()), (Vec::new(), Some(now)));
        assert_eq!(begin(&mut scans, &vm, again, later), [SERVER]);
    }

    #[test]
    fn a_chain_is_known_once_each_of_its_images_is_read_on_whatever_storage() {
        let (now, again) = (Instant::now(), Again::default());
        let (top, base) = (image(LOCAL, 1), image(SERVER, 2));
        let vm = vm(&[top, base], 1, true);
        let mut scans = HeaderScans::default();
        begin(&mut scans, &vm, again, now);
        let known = |scans: &HeaderScans| {
            let mut vm = vm.clone();
            scans.complete(&mut vm);
            (vm.unread, vm.unreadable)
        };
        scans.take(report(LOCAL, &[top], vec![header(top, &[base])]), &vm);
        assert_eq!(known(&scans), (vec![base], Vec::new()));
        scans.take(HeaderReport { failed: vec![base], ..report(SERVER, &[], Vec::new()) }, &vm);
        assert_eq!(known(&scans), (Vec::new(), vec![base]));
        scans.take(report(SERVER, &[base], Vec::new()), &vm);
        assert_eq!(known(&scans), Default::default());
    }

    #[test]
    fn a_chain_that_the_options_name_waits_for_no_header() {
        let mut vm = vm(&[image(LOCAL, 1)], 1, false);
        HeaderScans::default().complete(&mut vm);
        assert!(vm.unread.is_empty());
    }

    #[test]
    fn of_what_may_be_raw_only_images_of_disks_and_those_below_are_read() {
        let now = Instant::now();
        let (top, base, other) = (image(LOCAL, 1), image(SERVER, 2), image(LOCAL, 3));
        let mut vm = vm(&[top, base, other], 1, true);
        let raw = super::super::devices::disk("raw", None, "raw", false);
        vm.devices.disks.push(DomainDisk { resource: "/unknown".to_owned(), ..raw });
        let mut scans = HeaderScans::default();
        let images = |scans: &mut HeaderScans, now| {
            let (due, _) = scans.due(&vm, Again::default(), now);
            due.iter().flat_map(|(_, batch)| batch.images.clone()).collect::<Vec<_>>()
        };
        assert_eq!(images(&mut scans, now), [top]);
        begin(&mut scans, &vm, Again::default(), now);
        scans.take(report(LOCAL, &[top], vec![header(top, &[base])]), &vm);
        scans.take(report(SERVER, &[], Vec::new()), &vm);
        assert_eq!(images(&mut scans, now + Duration::from_secs(1)), [base]);
    }

    fn named(above: FileIdentity, image: FileIdentity, path: &str) -> ImageName {
        ImageName { above, image, path: path.to_owned() }
    }

    #[test]
    fn what_headers_name_is_replaced_and_not_heaped_up() {
        let now = Instant::now();
        let (top, base) = (image(LOCAL, 1), image(LOCAL, 2));
        let vm = vm(&[top, base], 1, true);
        let mut scans = HeaderScans::default();
        begin(&mut scans, &vm, Again::default(), now);
        for at in 0..1000 {
            // The owner of the process writes another spelling into the header.
            let names = vec![named(top, base, &format!("/{at}"))];
            scans.take(HeaderReport { names, ..report(LOCAL, &[top, base], Vec::new()) }, &vm);
        }
        assert_eq!(scans.names, [named(top, base, "/999")]);
        // A header that was not read this time says what it said.
        scans.take(report(LOCAL, &[base], Vec::new()), &vm);
        assert_eq!(scans.names.len(), 1);
        let long = "x".repeat(MAX_NAME_BYTES / 2);
        let names = (0..9).map(|at| named(top, base, &format!("{at}{long}"))).collect();
        scans.take(HeaderReport { names, ..report(LOCAL, &[top], Vec::new()) }, &vm);
        assert_eq!(scans.names.len(), 1);
    }

    #[test]
    fn images_that_another_storage_names_by_a_new_path_are_read_again() {
        let (now, again) = (Instant::now(), Again::default());
        let (top, base) = (image(LOCAL, 1), image(SERVER, 2));
        let vm = vm(&[top, base], 1, true);
        let mut scans = HeaderScans::default();
        assert_eq!(begin(&mut scans, &vm, again, now), [LOCAL, SERVER]);
        scans.take(report(SERVER, &[base], Vec::new()), &vm);
        let of_top = || HeaderReport {
            names: vec![named(top, base, "/link")],
            ..report(LOCAL, &[top], vec![header(top, &[base])])
        };
        scans.take(of_top(), &vm);
        let later = now + Duration::from_secs(1);
        assert_eq!(begin(&mut scans, &vm, again, later), [SERVER]);
        scans.take(report(SERVER, &[base], Vec::new()), &vm);
        scans.take(of_top(), &vm);
        assert!(
            begin(&mut scans, &vm, again, later + Duration::from_secs(9)).is_empty(),
            "the path is known"
        );
    }

    #[test]
    fn a_scan_for_which_the_agent_lacks_something_is_tried_again_for_as_long_as_it_takes() {
        let (mut now, again) = (Instant::now(), Again::default());
        let vm = vm(&[image(LOCAL, 1)], 1, true);
        let mut scans = HeaderScans::default();
        for _ in 0..100 {
            assert_eq!(begin(&mut scans, &vm, again, now), [LOCAL]);
            scans.take(HeaderReport { is_short: true, ..report(LOCAL, &[], Vec::new()) }, &vm);
            assert_eq!(scans.complete_from(), None);
            let (due, is_moving) = scans.due(&vm, again, now);
            assert!(due.is_empty() && is_moving, "not at once");
            now += AFTER_SHORTAGE;
        }
        begin(&mut scans, &vm, again, now);
        scans.take(report(LOCAL, &[image(LOCAL, 1)], Vec::new()), &vm);
        assert_eq!(scans.due(&vm, again, now + Duration::from_secs(9)), (Vec::new(), false));
        assert_eq!(scans.complete_from(), Some(now));
    }

    #[test]
    fn a_storage_that_hangs_after_its_file_was_closed_keeps_nothing_waiting() {
        let (now, again) = (Instant::now(), Again::default());
        let (local, server) = (image(LOCAL, 1), image(SERVER, 2));
        let mut scans = HeaderScans::default();
        let both = vm(&[local, server], 2, true);
        assert_eq!(begin(&mut scans, &both, again, now), [LOCAL, SERVER]);
        scans.take(report(LOCAL, &[local], Vec::new()), &both);
        let one = vm(&[local], 1, true);
        assert!(begin(&mut scans, &one, again, now).is_empty());
        assert_eq!(scans.complete_from(), Some(now));
        // The file is open again.
        assert!(begin(&mut scans, &both, again, now).is_empty(), "it is being read");
        assert_eq!(scans.complete_from(), None);
    }
}

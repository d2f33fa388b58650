//! Disks that a QEMU was told of after its start, by its monitor: images that it has open for a device, and that no option
//! names.
//!
//! QEMU locks bytes of an image by what it does with it (`RAW_LOCK_PERM_BASE` in its block/file-posix.c). An image that it
//! writes is a disk, or belongs to one: an overlay of a disk, or what is below it, is told by the headers. The target of a
//! block copy is a disk by this rule, too.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{devices::disk, disk_paths::last_of};
use crate::{
    inventory::{
        DomainDisk, FileIdentity, ImageHeader, OpenFile, PathAnswer, StorageSource, VmProcess,
    },
    sources::storage_location::Location,
};

/// Most disks of a process that are found in this way.
const MAX_PLUGGED: usize = 64;

/// Age from which the header of a new image is believed: a VMM creates an image first, and writes the backing file into its
/// header later.
const WRITTEN: Duration = Duration::from_secs(1);

/// Age at which an image that no device writes is not waited for any more.
const UNUSED: Duration = Duration::from_secs(10);

/// The byte that QEMU locks in an image that it may write.
const WRITE_LOCK: u64 = 101;

/// Whether QEMU has locked the file of a descriptor as one that it writes. `text`: the descriptor's file in `fdinfo`
/// (`lock_get_status` of the kernel's locks.c).
pub(super) fn has_write_lock(text: &[u8]) -> bool {
    let is_lock = |line: &[u8]| {
        let line = std::str::from_utf8(line.strip_prefix(b"lock:")?).ok()?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[_, "OFDLCK", _, _, _, _, first, last] = &words[..] else { return None };
        let range = first.parse().ok()?..=last.parse().unwrap_or(u64::MAX);
        range.contains(&WRITE_LOCK).then_some(())
    };
    text.split(|&byte| byte == b'\n').any(|line| is_lock(line).is_some())
}

/// A disk, and its image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct PluggedDisk {
    pub(super) image: FileIdentity,
    pub(super) disk: DomainDisk,
}

/// The images of a process that no option names.
#[derive(Debug, Default)]
pub(super) struct Plugged {
    /// When each was first seen, of those that may be disks.
    seen: HashMap<FileIdentity, Instant>,
    /// Those that are disks.
    disks: Arc<[PluggedDisk]>,
    /// The open files, and whether each is locked as one that is written.
    files: Vec<(FileIdentity, bool)>,
    /// When these changed.
    changed: Option<Instant>,
    /// Since when all headers have been read.
    headers_from: Option<Instant>,
}

/// What is needed to find out whether an image is a disk.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Needs {
    Nothing,
    /// Another scan of the process, later.
    Time,
    /// A scan of the headers that begins now, unless one that began after this time tells.
    Headers(Instant),
}

impl Plugged {
    /// The disks.
    pub(super) fn disks(&self) -> Arc<[PluggedDisk]> {
        Arc::clone(&self.disks)
    }

    /// All headers have been read since `from`.
    pub(super) const fn note_headers(&mut self, from: Instant) {
        self.headers_from = Some(from);
    }

    /// Takes in what a scan has found.
    pub(super) fn see(&mut self, vm: &VmProcess, now: Instant) -> Needs {
        let files = vm.files.iter().map(|file| (file.identity, file.has_write_lock));
        if !files.clone().eq(self.files.iter().copied()) {
            (self.files, self.changed) = (files.collect(), Some(now));
        }
        let free = self.free_images(vm);
        let is_open = |disk: &&PluggedDisk| free.contains_key(&disk.image);
        if !self.disks.iter().all(|disk| is_open(&disk)) {
            self.disks = self.disks.iter().filter(is_open).cloned().collect();
        }
        self.seen.retain(|image, _| free.contains_key(image));
        let mut needs = Needs::Nothing;
        for file in free.values() {
            let since = *self.seen.entry(file.identity).or_insert(now);
            let decisive = self.changed.map_or(since + WRITTEN, |at| at.max(since + WRITTEN));
            let is_decided = self.headers_from.is_some_and(|from| from >= decisive);
            let age = now.saturating_duration_since(since);
            needs = needs.max(match file.has_write_lock {
                _ if self.disks.iter().any(|disk| disk.image == file.identity) => Needs::Nothing,
                true if is_decided => Needs::Nothing,
                true if age >= WRITTEN => Needs::Headers(decisive),
                false if age >= UNUSED => Needs::Nothing,
                _ => Needs::Time,
            });
        }
        needs
    }

    /// Finds the disks among the images, with the headers of a scan that has ended.
    pub(super) fn decide(&mut self, vm: &VmProcess, headers: &[ImageHeader]) {
        let Some(from) = self.headers_from.filter(|_| !vm.is_raw_unclear()) else { return };
        let linked = self.linked(vm, headers);
        let is_disk = |file: &&OpenFile| {
            let since = self.seen.get(&file.identity);
            file.has_write_lock
                && since.is_some_and(|since| *since + WRITTEN <= from)
                && !linked.contains(&file.identity)
        };
        let free = self.free_images(vm);
        let mut found: Vec<_> = free.into_values().filter(is_disk).collect();
        found.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        found.truncate(MAX_PLUGGED.saturating_sub(self.disks.len()));
        if !found.is_empty() {
            let has_header = |file: &OpenFile| headers.iter().any(|of| of.image == file.identity);
            let found = found.into_iter().map(|file| plugged(file, has_header(file)));
            self.disks = self.disks.iter().cloned().chain(found).collect();
        }
    }

    /// The images that are open for writing, and that neither an option nor libvirt names.
    fn free_images<'a>(&self, vm: &'a VmProcess) -> HashMap<FileIdentity, &'a OpenFile> {
        let open = |answer: &PathAnswer| match answer {
            PathAnswer::Open(file) => Some(*file),
            PathAnswer::Closed(_) | PathAnswer::Unknown(_) => None,
        };
        let mut named: HashSet<FileIdentity> = vm.paths.values().filter_map(open).collect();
        for disk in &*self.disks {
            named.remove(&disk.image);
        }
        let may_be_image = |file: &&OpenFile| {
            let is_image = file.has_write_lock || file.identity.is_block_device() || file.is_direct;
            file.is_writable && is_image && !named.contains(&file.identity)
        };
        vm.files.iter().filter(may_be_image).map(|file| (file.identity, file)).collect()
    }

    /// The images that belong to a known disk, as an overlay, and what is below any image.
    fn linked(&self, vm: &VmProcess, headers: &[ImageHeader]) -> HashSet<FileIdentity> {
        let named = vm.devices.disks.iter().filter_map(|disk| vm.file_at(&disk.resource));
        let mut linked: HashSet<FileIdentity> = named.map(|file| file.identity).collect();
        linked.extend(self.disks.iter().map(|disk| disk.image));
        let mut above: HashMap<FileIdentity, Vec<FileIdentity>> = HashMap::new();
        for header in headers {
            for below in &header.below {
                above.entry(*below).or_default().push(header.image);
            }
        }
        // A chain may have as many images as a process has files open.
        let mut queue: Vec<FileIdentity> = linked.iter().copied().collect();
        while let Some(image) = queue.pop() {
            let overlays = above.get(&image).into_iter().flatten().copied();
            queue.extend(overlays.filter(|overlay| linked.insert(*overlay)));
        }
        linked.extend(headers.iter().flat_map(|header| &header.below));
        linked
    }
}

/// The disk of an image. Without a header its format is not known, and so the size of the disk in a file is not.
fn plugged(file: &OpenFile, has_header: bool) -> PluggedDisk {
    let format = match (has_header, file.identity.is_block_device()) {
        (true, _) => "qcow2",
        (false, true) => "raw",
        (false, false) => "",
    };
    let mut disk =
        disk(last_of(&file.path), Some(Location::Local(file.path.clone())), format, false);
    if format.is_empty() {
        disk.source = StorageSource::Unknown;
    }
    PluggedDisk { image: file.identity, disk }
}

#[cfg(test)]
mod tests {
    use kvmeter_common::ImageKey;

    use super::*;

    fn file(number: u64, path: &str) -> OpenFile {
        OpenFile {
            path: path.to_owned(),
            identity: FileIdentity { device: 1, file: number },
            mount: 1,
            device: 1,
            is_direct: true,
            is_writable: true,
            has_write_lock: true,
            has_iomap: true,
            answers_from_memory: true,
        }
    }

    fn device(number: u32, path: &str) -> OpenFile {
        let identity = FileIdentity { device: number, file: ImageKey::NO_FILE };
        OpenFile { identity, device: number, ..file(0, path) }
    }

    fn header(image: &OpenFile, below: &[&OpenFile]) -> ImageHeader {
        let below = below.iter().map(|file| file.identity).collect();
        ImageHeader { image: image.identity, size: 1 << 30, below, raw: Vec::new() }
    }

    /// A VM with these files open, of which an option names the first.
    fn vm(files: &[OpenFile]) -> VmProcess {
        let first = &files[0];
        let mut vm = VmProcess { files: files.to_vec(), ..VmProcess::default() };
        vm.paths.insert(first.path.clone(), PathAnswer::Open(first.identity));
        let location = Location::Local(first.path.clone());
        vm.devices.disks.push(disk("d0", Some(location), "qcow2", false));
        vm
    }

    fn names(plugged: &Plugged) -> Vec<String> {
        plugged.disks().iter().map(|plugged| plugged.disk.target.clone()).collect()
    }

    /// Sees the VM, then again when it is old enough, with a scan of headers then. Returns what was needed before and then.
    fn seen(
        plugged: &mut Plugged,
        vm: &VmProcess,
        headers: &[ImageHeader],
        now: &mut Instant,
    ) -> [Needs; 2] {
        let first = plugged.see(vm, *now);
        *now += WRITTEN;
        let then = plugged.see(vm, *now);
        if matches!(then, Needs::Headers(_)) {
            plugged.note_headers(*now);
            plugged.decide(vm, headers);
            *now += Duration::from_millis(1);
            assert_eq!(plugged.see(vm, *now), Needs::Nothing);
        }
        [first, then]
    }

    #[test]
    fn locks_of_qemu() {
        let text = "pos:\t0\nflags:\t0140002\nmnt_id:\t25\n";
        let has = |line: &str| has_write_lock(format!("{text}{line}\n").as_bytes());
        assert!(has("lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:00:12 100 101"));
        assert!(has(
            "lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:00:12 201 203\nlock:\t2: OFDLCK ADVISORY READ -1 fe:00:12 100 103"
        ));
        for none in [
            "",
            "lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:00:12 100 100",
            "lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:00:12 201 203",
            "lock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:12 0 EOF",
            "lock:\t1: OFDLCK",
        ] {
            assert!(!has(none), "{none}");
        }
    }

    #[test]
    fn an_image_that_is_written_and_that_nothing_names_is_a_disk() {
        let (base, pool) = (file(1, "/a/base"), file(2, "/b/vm-1.raw"));
        let (log, volume) =
            (OpenFile { is_writable: false, ..file(3, "/l") }, device(9, "/dev/dm-5"));
        let vm = vm(&[base, pool, log, volume]);
        let (mut plugged, mut now) = (Plugged::default(), Instant::now());
        let needs = seen(&mut plugged, &vm, &[], &mut now);
        assert!(matches!(needs, [Needs::Time, Needs::Headers(_)]), "{needs:?}");
        assert_eq!(names(&plugged), ["vm-1.raw", "dm-5"]);
        let sources: Vec<_> =
            plugged.disks().iter().map(|of| (of.disk.source, of.disk.format.clone())).collect();
        assert_eq!(
            sources,
            [(StorageSource::Unknown, String::new()), (StorageSource::Block, "raw".to_owned())]
        );
        // Unplugged.
        let without = VmProcess { files: vm.files[..2].to_vec(), ..vm };
        plugged.see(&without, now);
        assert_eq!(names(&plugged), ["vm-1.raw"]);
    }

    #[test]
    fn what_belongs_to_a_disk_is_none_of_its_own() {
        let files = [file(1, "/base"), file(2, "/overlay"), file(3, "/top"), file(4, "/below")];
        let [base, overlay, top, below] = &files;
        let headers = [header(top, &[overlay]), header(overlay, &[base]), header(base, &[below])];
        let (mut plugged, mut now) = (Plugged::default(), Instant::now());
        let needs = seen(&mut plugged, &vm(&files), &headers, &mut now);
        assert!(matches!(needs[1], Needs::Headers(_)) && names(&plugged).is_empty(), "{needs:?}");
        // The disk's own image was closed after a commit into an image that no header refers to.
        let files = [base.clone(), top.clone()];
        seen(&mut plugged, &vm(&files), &headers[..0], &mut now);
        assert_eq!(names(&plugged), ["top"]);
    }

    #[test]
    fn a_chain_of_all_open_files_costs_no_more_than_their_number() {
        let files: Vec<_> = (0..8192).map(|at| file(at, &format!("/{at:04}"))).collect();
        let headers: Vec<_> = files.windows(2).map(|of| header(&of[1], &[&of[0]])).collect();
        let plugged = Plugged::default();
        let begin = Instant::now();
        assert_eq!(plugged.linked(&vm(&files), &headers).len(), files.len());
        // Rounds over all headers, one for each image of the chain, take a minute.
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }

    #[test]
    fn an_image_whose_device_comes_later_is_waited_for() {
        let idle = OpenFile { has_write_lock: false, ..device(9, "/dev/zd16") };
        let unused = vm(&[file(1, "/a"), idle]);
        let used = vm(&[file(1, "/a"), device(9, "/dev/zd16")]);
        let (mut plugged, mut now) = (Plugged::default(), Instant::now());
        assert_eq!(seen(&mut plugged, &unused, &[], &mut now), [Needs::Time; 2]);
        let mut later = Plugged::default();
        later.see(&unused, now);
        assert_eq!(later.see(&unused, now + UNUSED), Needs::Nothing);
        // Headers that were read before say nothing.
        plugged.note_headers(now);
        now += Duration::from_millis(100);
        assert_eq!(plugged.see(&used, now), Needs::Headers(now));
        seen(&mut plugged, &used, &[], &mut now);
        assert_eq!(names(&plugged), ["zd16"]);
    }
}

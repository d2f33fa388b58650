//! The files and block devices that a process has open, with the keys under which the kernel counts their I/O.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs::File,
    io::{self, BufReader},
    rc::Rc,
};

use rustix::fs::OFlags;

use super::{
    descriptors::Descriptors,
    mounts::Mounts,
    process::{DescriptorInfo, Process, path_of_target},
    shortage::{if_there, is_closed},
    taps,
};
use crate::inventory::{FileIdentity, OpenFile};

/// Most files of a process that are looked at, those with the lowest descriptors: a VMM opens its disks first.
const MAX_FILES: usize = 8192;

/// How often the descriptors of a process that closes some meanwhile are listed again. QEMU opens an image anew where it is to be
/// read or written in another mode, as before its first write.
const RELISTINGS: usize = 3;

/// Most descriptors of taps of a process. A tap has one for each of its queues, 256 at most.
const MAX_TAPS: usize = 4096;

/// The open files of a process, each once.
#[derive(Debug, Default)]
pub(super) struct OpenFiles {
    /// Ascending by path.
    pub(super) files: Vec<OpenFile>,
    /// A descriptor of each.
    pub(super) descriptors: HashMap<FileIdentity, u32>,
    /// The place of each in `files`.
    places: HashMap<FileIdentity, usize>,
    /// What each descriptor refers to.
    pub(super) by_descriptor: HashMap<u32, FileIdentity>,
    /// Descriptors of taps, with the names of the interfaces.
    pub(super) taps: Vec<(u32, String)>,
    /// A listed descriptor was closed: what it referred to may be open at another one.
    is_outdated: bool,
}

/// The regular files and block devices that a process has open, with the list of its descriptors: `descriptors`, or if some were
/// closed meanwhile or a file of the previous scan is missing, the answer of `list`. `known`: the files of the previous scan, whose
/// filesystem is not looked up again.
///
/// # Errors
///
/// Those of reading the process's list of mounts and of `list`, and those about what the agent lacks.
pub(super) fn open(
    process: &Process,
    mut descriptors: Descriptors,
    mut list: impl FnMut() -> io::Result<Descriptors>,
    known: &[OpenFile],
) -> io::Result<(Descriptors, OpenFiles)> {
    // Shared by all rounds: a long list of mounts takes a while to read, in which more may change.
    let mut filesystems = Filesystems::new(process, known);
    let mut found = look_at(&descriptors.files, &mut filesystems)?;
    // One that was opened and one that was closed while they were listed may both be missing.
    let is_missing = |file: &OpenFile| !found.places.contains_key(&file.identity);
    let mut is_outdated =
        descriptors.is_outdated || found.is_outdated || known.iter().any(is_missing);
    for _ in 0..RELISTINGS {
        if !is_outdated {
            break;
        }
        descriptors = list()?;
        found = look_at(&descriptors.files, &mut filesystems)?;
        is_outdated = descriptors.is_outdated || found.is_outdated;
    }
    Ok((descriptors, found))
}

/// The regular files and block devices among `descriptors`.
fn look_at(
    descriptors: &[(u32, Rc<str>)],
    filesystems: &mut Filesystems<'_>,
) -> io::Result<OpenFiles> {
    let process = filesystems.process;
    let mut found = OpenFiles::default();
    let mut at: HashMap<(FileIdentity, u64), usize> = HashMap::new();
    for (fd, path) in descriptors {
        if found.files.len() >= MAX_FILES {
            break;
        }
        let (info, tap) = match process.descriptor_info(*fd) {
            Ok(known) => known,
            Err(error) => {
                found.is_outdated |= is_closed(error)?;
                continue;
            }
        };
        if let Some(tap) = tap.or_else(|| taps::macvtap(process, *fd, path)) {
            if found.taps.len() < MAX_TAPS {
                found.taps.push((*fd, tap));
            }
            continue;
        }
        let mut filesystem = filesystems.of(info.mount)?;
        let identity = match identity(process, *fd, info, filesystem) {
            Ok(Some(identity)) => identity,
            Ok(None) => continue,
            Err(error) => {
                found.is_outdated |= is_closed(error)?;
                continue;
            }
        };
        let is_block_device = identity.is_block_device();
        if !is_block_device && filesystem.device.is_none() {
            filesystem = filesystems.look_up(info.mount)?;
        }
        found.by_descriptor.insert(*fd, identity);
        found.descriptors.entry(identity).or_insert(*fd);
        let is_direct = info.flags & OFlags::DIRECT.bits() != 0;
        let is_writable = info.flags & OFlags::ACCMODE.bits() == OFlags::RDWR.bits();
        match at.entry((identity, info.mount)) {
            Entry::Occupied(at) => {
                let file = &mut found.files[*at.get()];
                file.is_direct |= is_direct;
                file.is_writable |= is_writable;
                file.has_write_lock |= info.has_write_lock;
            }
            Entry::Vacant(entry) => {
                entry.insert(found.files.len());
                let device = filesystem.device.filter(|_| !is_block_device);
                found.files.push(OpenFile {
                    path: path_of_target(path).to_owned(),
                    identity,
                    mount: info.mount,
                    device: device.unwrap_or(identity.device),
                    is_direct,
                    is_writable,
                    has_write_lock: info.has_write_lock,
                    has_iomap: filesystem.has_iomap && !is_block_device,
                    answers_from_memory: filesystem.answers_from_memory,
                });
            }
        }
    }
    found.files.sort_unstable_by(|a, b| (&a.path, a.identity).cmp(&(&b.path, b.identity)));
    found.places = found.files.iter().enumerate().map(|(at, file)| (file.identity, at)).collect();
    Ok(found)
}

impl OpenFiles {
    pub(super) fn file(&self, identity: FileIdentity) -> Option<&OpenFile> {
        self.files.get(*self.places.get(&identity)?)
    }
}

/// The identity of a descriptor's file. `None`: neither a regular file nor a block device.
fn identity(
    process: &Process,
    fd: u32,
    info: DescriptorInfo,
    filesystem: Filesystem,
) -> io::Result<Option<FileIdentity>> {
    let Filesystem { device, answers_from_memory, .. } = filesystem;
    if let (false, Some(device), Some(file)) = (answers_from_memory, device, info.inode) {
        let other = OFlags::DIRECTORY | OFlags::PATH;
        return Ok((info.flags & other.bits() == 0).then_some(FileIdentity { device, file }));
    }
    process.identity_of_descriptor(fd)
}

/// What is known of the filesystem of a mount.
#[derive(Clone, Copy, Debug)]
struct Filesystem {
    /// `None` = not known: the device that statx(2) reports is right for every filesystem but Btrfs.
    device: Option<u32>,
    has_iomap: bool,
    answers_from_memory: bool,
}

/// Finds the filesystems of mounts. Lists of mounts, which may be long, are read only for a mount that is not known.
struct Filesystems<'a> {
    process: &'a Process,
    known: HashMap<u64, Filesystem>,
    lists: Option<Vec<Mounts<BufReader<File>>>>,
}

impl<'a> Filesystems<'a> {
    fn new(process: &'a Process, files: &[OpenFile]) -> Self {
        let mut known = HashMap::new();
        for file in files {
            let is_block_device = file.identity.is_block_device();
            let filesystem = Filesystem {
                device: Some(file.device).filter(|_| !is_block_device),
                has_iomap: file.has_iomap,
                answers_from_memory: file.answers_from_memory,
            };
            if is_block_device {
                known.entry(file.mount).or_insert(filesystem);
            } else {
                known.insert(file.mount, filesystem);
            }
        }
        Self { process, known, lists: None }
    }

    fn of(&mut self, mount: u64) -> io::Result<Filesystem> {
        match self.known.get(&mount) {
            Some(known) => Ok(*known),
            None => self.look_up(mount),
        }
    }

    /// Looks in the process's namespace first. A descriptor that the process was given over a socket may be of a mount in
    /// another one: the agent's or that of the first process, or one that is in no list, as the kernel's own for memfd is.
    fn look_up(&mut self, mount: u64) -> io::Result<Filesystem> {
        if self.lists.is_none() {
            let own = self.process.open("mountinfo")?;
            let mut lists = vec![Mounts::new(BufReader::new(own), self.process.is_foreign()?)];
            for path in ["/proc/self/mountinfo", "/proc/1/mountinfo"] {
                let other = if_there(File::open(path))?;
                lists.extend(other.map(|file| Mounts::new(BufReader::new(file), false)));
            }
            self.lists = Some(lists);
        }
        // No direct I/O is expected of a filesystem that is not known: the count of such a disk would stay 0.
        let mut found = Filesystem { device: None, has_iomap: false, answers_from_memory: true };
        for list in self.lists.iter_mut().flatten() {
            if let Some(of) = list.get(mount)? {
                found = Filesystem {
                    device: Some(of.device),
                    has_iomap: of.has_iomap(),
                    answers_from_memory: of.answers_from_memory(),
                };
                break;
            }
        }
        self.known.insert(mount, found);
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        process::{Command, Stdio},
        time::{Duration, Instant},
    };

    use rustix::fs::{CWD, Mode, mkdirat, openat};

    use super::{super::test_child::TestChild, *};

    #[test]
    fn a_file_whose_path_is_not_told_is_not_taken_for_closed() {
        let place = tempfile::tempdir().unwrap();
        let name = "d".repeat(250);
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut dir = openat(CWD, place.path(), how, Mode::empty()).unwrap();
        // readlink(2) tells 4,095 bytes at most.
        for _ in 0..17 {
            mkdirat(&dir, &name, Mode::RWXU).unwrap();
            dir = openat(&dir, &name, how, Mode::empty()).unwrap();
        }
        let how = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        let stdin = Stdio::from(openat(&dir, "f", how, Mode::RWXU).unwrap());
        let sleeper = TestChild(Command::new("sleep").arg("600").stdin(stdin).spawn().unwrap());
        let process = Process::hold(Path::new("/proc"), sleeper.id()).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        // Before that it closes the libraries that it has opened.
        while process.stat().unwrap().state != 'S' {
            assert!(Instant::now() < deadline);
            std::thread::yield_now();
        }
        assert!(!Descriptors::of(&process, false).unwrap().is_outdated);
    }

    #[test]
    fn a_file_that_is_opened_anew_during_a_scan_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stdin = Stdio::from(file.reopen().unwrap());
        let sleeper = TestChild(Command::new("sleep").arg("600").stdin(stdin).spawn().unwrap());
        let process = Process::hold(Path::new("/proc"), sleeper.id()).unwrap();
        let path: Rc<str> = file.path().to_str().unwrap().into();
        // When its descriptors were listed, the process had the file at another one.
        let before = || {
            let mut before = Descriptors::default();
            before.files.push((1000, Rc::clone(&path)));
            before
        };
        let paths = |(descriptors, open): (Descriptors, OpenFiles)| {
            let listed = descriptors.files.iter().any(|(fd, of)| (*fd, of) == (0, &path));
            (listed, open.files.iter().any(|file| *file.path == *path))
        };
        let list = || Descriptors::of(&process, false);
        assert_eq!(paths(open(&process, before(), list, &[]).unwrap()), (true, true));
        // It was opened and closed while they were listed, so that neither descriptor is in the list.
        let (_, known) = open(&process, list().unwrap(), list, &[]).unwrap();
        let listed = open(&process, Descriptors::default(), list, &known.files);
        assert_eq!(paths(listed.unwrap()), (true, true));
        // One was closed before its target could be read.
        let mut closed = Descriptors::default();
        closed.is_outdated = true;
        assert_eq!(paths(open(&process, closed, list, &[]).unwrap()), (true, true));
        // One that never stands still does not keep the agent.
        let mut listings = 0;
        let list = || {
            listings += 1;
            Ok(before())
        };
        assert_eq!(paths(open(&process, before(), list, &[]).unwrap()), (false, false));
        assert_eq!(listings, RELISTINGS);
    }
}

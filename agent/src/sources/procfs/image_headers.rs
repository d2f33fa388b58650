//! Reads the headers of the images that a process has open: virtual size, backing file, data file. Only the headers know a
//! backing chain that no option names.
//!
//! Reading may block (NFS), so the files of a process that are on one storage are read on a detached thread of their own: a storage that
//! hangs delays nothing of another, of the same process or of others.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use tracing::debug;

use super::{
    descriptors::Descriptors,
    disk_paths::{DiskPaths, last_of},
    files::{self, OpenFiles},
    header_scans::Batch,
    header_slots::{Slots, Storage},
    options::Fields,
    process::Process,
    qcow2::{HEADER_LEN, Header},
    shortage::is_shortage,
};
use crate::{
    account::Account,
    inventory::{DiskSize, FileIdentity, ImageHeader},
    sources::storage_location::{LOCAL, split_scheme},
};

/// Most images that one scan reads.
const MAX_IMAGES: usize = 1024;

/// Most bytes of paths of images that are kept of a process. Whoever owns the images writes the paths.
pub(super) const MAX_NAME_BYTES: usize = 1 << 20;

/// Longest path that the kernel follows, with the 0 at its end (`PATH_MAX`).
const PATH_MAX: usize = 4096;

/// The result of a scan.
#[derive(Debug)]
pub(super) struct HeaderReport {
    pub(super) pid: u32,
    /// Start time of the process, which tells it from a later one with the same id.
    pub(super) start_ticks: u64,
    /// The storage of all files that were read.
    pub(super) storage: Storage,
    pub(super) headers: Vec<ImageHeader>,
    /// Images that were read, with or without a header, or that are not open any more.
    pub(super) read: HashSet<FileIdentity>,
    /// Images that could not be read.
    pub(super) failed: Vec<FileIdentity>,
    /// Paths by which the headers name other images.
    pub(super) names: Vec<ImageName>,
    /// Sizes of files whose filesystem may have asked its server for them.
    pub(super) sizes: Vec<(FileIdentity, DiskSize)>,
    /// Nothing was read, because the agent lacks descriptors or memory.
    pub(super) is_short: bool,
}

/// A path by which a header names another image.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct ImageName {
    /// The image with the header.
    pub(super) above: FileIdentity,
    pub(super) image: FileIdentity,
    pub(super) path: String,
}

/// What came of a scan that was to be started.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Start {
    Running,
    /// Too many are running. The report of one of them may make room ([`HeaderScanner::has_room`]).
    Full,
    /// The agent lacks a thread.
    Short,
}

/// Scans processes in the background and sends a [`HeaderReport`] for each.
#[derive(Debug)]
pub(super) struct HeaderScanner {
    reports: Sender<HeaderReport>,
    /// Eventfd that is written to after a report was sent.
    wake: Arc<OwnedFd>,
    slots: Arc<Mutex<Slots>>,
}

impl HeaderScanner {
    pub(super) fn new(wake: OwnedFd) -> (Self, Receiver<HeaderReport>) {
        let (reports, receiver) = crossbeam_channel::unbounded();
        (Self { reports, wake: Arc::new(wake), slots: Arc::default() }, receiver)
    }

    /// Whether a scan of files of this storage may begin now, for a process on this account.
    pub(super) fn has_room(&self, storage: Storage, account: Option<Account>) -> bool {
        lock(&self.slots).has_room(storage, account)
    }

    /// Starts a scan.
    pub(super) fn start_scan(&self, target: ScanTarget) -> Start {
        let ScanTarget { pid, storage, account, .. } = target;
        if !lock(&self.slots).begin(storage, account) {
            return Start::Full;
        }
        let (reports, wake, slots) =
            (self.reports.clone(), Arc::clone(&self.wake), Arc::clone(&self.slots));
        let scan = move || {
            let report = target.scan().unwrap_or_else(|error| {
                // Any user can have processes end while they are scanned.
                debug!(pid, "The headers of a VM's images are not read: {error}");
                target.failed(is_shortage(&error))
            });
            lock(&slots).end(storage, account);
            if reports.send(report).is_ok() {
                // Fails only if the counter is at its maximum, and then the eventfd is readable already.
                let _ = rustix::io::write(&wake, &[1; 8]);
            }
        };
        if let Err(error) = thread::Builder::new().name("headers".to_owned()).spawn(scan) {
            lock(&self.slots).end(storage, account);
            debug!(pid, "no thread to read the headers of a VM's images: {error}");
            return Start::Short;
        }
        Start::Running
    }
}

fn lock(slots: &Mutex<Slots>) -> MutexGuard<'_, Slots> {
    slots.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Files of a process that are on one storage and are to be scanned.
#[derive(Debug)]
pub(super) struct ScanTarget {
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// The account on whose share of the scans it counts; `None` = the process is root's, or that of a domain of root's libvirt.
    pub(super) account: Option<Account>,
    pub(super) storage: Storage,
    pub(super) batch: Batch,
    /// Files declared raw. Their guest controls what stands in the place of a header.
    pub(super) raw: Vec<FileIdentity>,
    /// Images by the paths of disks. The name of a backing file starts from the directory in the path, not from that of
    /// the file to which a link leads.
    pub(super) names: Vec<(FileIdentity, String)>,
}

/// The images of a process, while they are scanned.
struct Images<'a> {
    process: &'a Process,
    open: &'a OpenFiles,
    paths: DiskPaths<'a>,
    /// Paths by which each image is named.
    names: HashMap<FileIdentity, Vec<String>>,
    /// Those that headers name, and the bytes of their paths.
    found: Vec<ImageName>,
    found_bytes: usize,
}

impl ScanTarget {
    /// Reads each image through the process's own descriptor, and those below that are on the same storage.
    fn scan(&self) -> io::Result<HeaderReport> {
        let process = Process::hold(&self.proc_root, self.pid)?;
        if process.stat()?.start_ticks != self.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let list = || {
            let mut descriptors = Descriptors::of(&process, false)?;
            // An optical drive may have to load its disc first.
            descriptors.files.retain(|(_, path)| !path.starts_with("/dev/sr"));
            Ok(descriptors)
        };
        let (_, open) = files::open(&process, list()?, list, &[])?;
        let mut images = Images {
            process: &process,
            open: &open,
            paths: DiskPaths::new(&process, &open),
            names: HashMap::new(),
            found: Vec::new(),
            found_bytes: 0,
        };
        for (image, name) in &self.names {
            images.names.entry(*image).or_default().push(name.clone());
        }
        let mut queue: VecDeque<_> = self.batch.images.iter().copied().collect();
        let mut report = HeaderReport { failed: Vec::new(), ..self.failed(false) };
        while let Some(image) = queue.pop_front() {
            let is_known = report.read.contains(&image) || report.failed.contains(&image);
            if is_known || self.raw.contains(&image) || Storage::of(image) != self.storage {
                continue;
            }
            if report.read.len() + report.failed.len() >= MAX_IMAGES {
                report.failed.push(image);
                break;
            }
            match images.header(image) {
                Ok(header) => {
                    report.read.insert(image);
                    let below = header.iter().flat_map(|of| {
                        of.below.iter().filter(|below| !of.raw.contains(below)).copied()
                    });
                    below.for_each(|below| queue.push_front(below));
                    report.headers.extend(header);
                }
                Err(error) if is_shortage(&error) => return Err(error),
                Err(error) => {
                    debug!(pid = self.pid, ?image, "header not read: {error}");
                    report.failed.push(image);
                }
            }
        }
        report.failed.extend(queue.into_iter().filter(|image| !report.read.contains(image)));
        report.names = images.found;
        report.names.retain(|name| report.read.contains(&name.above));
        report.sizes = sizes(&process, &open, &self.batch.sizes);
        Ok(report)
    }

    /// The report if nothing can be read. `is_short`: only for now.
    fn failed(&self, is_short: bool) -> HeaderReport {
        HeaderReport {
            pid: self.pid,
            start_ticks: self.start_ticks,
            storage: self.storage,
            headers: Vec::new(),
            read: HashSet::new(),
            failed: if is_short { Vec::new() } else { self.batch.images.clone() },
            names: Vec::new(),
            sizes: Vec::new(),
            is_short,
        }
    }
}

/// The sizes of files whose filesystem may ask its server for them.
fn sizes(
    process: &Process,
    open: &OpenFiles,
    files: &[FileIdentity],
) -> Vec<(FileIdentity, DiskSize)> {
    let measured = files.iter().filter_map(|file| {
        let fd = open.descriptors.get(file)?;
        Some((*file, process.measure_descriptor(*fd).ok()??.size))
    });
    measured.collect()
}

impl Images<'_> {
    /// The header of an image, if it is open and has one; backing and data files are looked up among the open files.
    fn header(&mut self, image: FileIdentity) -> io::Result<Option<ImageHeader>> {
        let Some(fd) = self.open.descriptors.get(&image) else { return Ok(None) };
        let file = match self.process.open_descriptor(*fd, image) {
            // Closed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut bytes = [0; HEADER_LEN];
        let len = read_up_to(&file, &mut bytes)?;
        let Some(header) = Header::parse(&bytes[..len]) else { return Ok(None) };
        let backing = header.backing.and_then(|(offset, len)| {
            let mut name = vec![0; len];
            file.read_exact_at(&mut name, offset).ok()?;
            String::from_utf8(name).ok()
        });
        let backing = match backing {
            Some(name) => self.find(image, &name)?,
            None => None,
        };
        let data = match header.data_file {
            Some(name) => self.find(image, &name)?,
            None => None,
        };
        Ok(Some(ImageHeader {
            image,
            size: header.size,
            below: backing.into_iter().chain(data).collect(),
            raw: backing.filter(|_| header.backing_is_raw).into_iter().chain(data).collect(),
        }))
    }

    /// The open file that an image's header names. `None`: not found, or reached over the network.
    fn find(&mut self, image: FileIdentity, name: &str) -> io::Result<Option<FileIdentity>> {
        let Some(name) = file_of(name) else { return Ok(None) };
        let own = self.open.file(image).map(|file| file.path.clone());
        let above = self.names.get(&image).into_iter().flatten().cloned().chain(own);
        let above: Vec<_> = above.collect();
        for above in above {
            let path = beside(&above, &name);
            // Each header of a chain can make the path of the next image longer.
            if path.len() >= PATH_MAX {
                continue;
            }
            if let Some(found) = self.paths.find(&path)? {
                if self.found_bytes + path.len() <= MAX_NAME_BYTES {
                    self.found_bytes += path.len();
                    self.found.push(ImageName { above: image, image: found, path: path.clone() });
                    self.names.entry(found).or_default().push(path);
                }
                return Ok(Some(found));
            }
        }
        // It was renamed, or its path cannot be looked up.
        let others = self.open.files.iter().filter(|file| file.identity != image);
        let mut same = others.filter(|file| last_of(&file.path) == last_of(&name));
        Ok(same.next().filter(|_| same.next().is_none()).map(|file| file.identity))
    }
}

/// The path of a file that the header of the image at `above` names, as QEMU's path_combine() has it.
fn beside(above: &str, name: &str) -> String {
    let above = file_of(above).unwrap_or_default();
    match above.rfind('/') {
        Some(end) if !name.starts_with('/') => format!("{}/{name}", &above[..end]),
        _ => name.to_owned(),
    }
}

/// Fills the buffer as far as the file goes, and returns the length.
fn read_up_to(file: &File, bytes: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < bytes.len() {
        match file.read_at(&mut bytes[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// The path in the name of an image, as QEMU takes it; `None` where the name is a network location.
pub(super) fn file_of(name: &str) -> Option<String> {
    match split_scheme(name) {
        Some(("json", json)) => {
            let fields = Fields::parse_json(json)?;
            let path = fields.get("filename").or_else(|| fields.get("file.filename"));
            path.map(str::to_owned)
        }
        Some((scheme, path)) if LOCAL.contains(&scheme) => Some(path.to_owned()),
        Some(_) => None,
        None => (!name.is_empty()).then(|| name.to_owned()),
    }
}

/// Parses a header and a file name, for the fuzzer.
pub(super) fn interpret(bytes: &[u8]) {
    let data_file = Header::parse(bytes).and_then(|header| header.data_file);
    let name = String::from_utf8_lossy(bytes);
    drop((file_of(&name), data_file.as_deref().and_then(file_of)));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_as_qemu_reads_them() {
        let named = |name| file_of(name);
        assert_eq!(named("base.raw").as_deref(), Some("base.raw"));
        assert_eq!(named("/i/a:b").as_deref(), Some("/i/a:b"));
        assert_eq!(named("file:/i/a").as_deref(), Some("/i/a"));
        assert_eq!(named("host_device:/dev/vg/a").as_deref(), Some("/dev/vg/a"));
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/i/a"}}"#;
        assert_eq!(named(json).as_deref(), Some("/i/a"));
        for other in ["nbd://host/x", "rbd:pool/image", "json:{", ""] {
            assert_eq!(named(other), None, "{other}");
        }
    }

    #[test]
    fn a_backing_file_is_beside_the_path_of_the_image_above() {
        for (above, name, path) in [
            ("/i/top.qcow2", "base.raw", "/i/base.raw"),
            ("/i/top.qcow2", "../base.raw", "/i/../base.raw"),
            ("top.qcow2", "base.raw", "base.raw"),
            ("d/top.qcow2", "base.raw", "d/base.raw"),
            ("file:/i/top.qcow2", "base.raw", "/i/base.raw"),
            ("/i/top.qcow2", "/b/base.raw", "/b/base.raw"),
            ("/top.qcow2", "base.raw", "/base.raw"),
        ] {
            assert_eq!(beside(above, name), path, "{name} of {above}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_name_panics(name in "(json:|file:)?.{0,40}") {
            let _ = file_of(&name);
        }
    }
}

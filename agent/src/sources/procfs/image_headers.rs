//! Reads the headers of the images that a process has open: virtual size, backing file, data file. Only the headers know a
//! backing chain that no option names.
//!
//! Reading may block (NFS), so each process is scanned on a detached thread of its own.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use tracing::{debug, warn};

use super::{
    descriptors::Descriptors,
    disk_paths::{DiskPaths, last_of},
    files::{self, OpenFiles},
    options::Fields,
    process::Process,
    qcow2::{HEADER_LEN, Header},
};
use crate::{
    inventory::{DiskSize, FileIdentity, ImageHeader},
    sources::storage_location::{LOCAL, split_scheme},
};

/// Most scans that run at the same time: in all, with files of one filesystem, and with block devices of one driver. Further ones
/// wait until one ends. A storage that hangs does not keep those of others waiting.
const MAX_SCANS: usize = 32;
const MAX_OF_FILESYSTEM: usize = 4;
const MAX_OF_DRIVER: usize = 8;

/// Most images of a process that are scanned.
const MAX_IMAGES: usize = 1024;

/// The result of a scan.
#[derive(Debug)]
pub(super) struct HeaderReport {
    pub(super) pid: u32,
    /// Start time of the process, which tells it from a later one with the same id.
    pub(super) start_ticks: u64,
    pub(super) headers: Vec<ImageHeader>,
    /// Sizes of files whose filesystem may have asked its server for them.
    pub(super) sizes: Vec<(FileIdentity, DiskSize)>,
}

/// Scans processes in the background and sends a [`HeaderReport`] for each.
#[derive(Debug)]
pub(super) struct HeaderScanner {
    reports: Sender<HeaderReport>,
    /// Eventfd that is written to after a report was sent.
    wake: Arc<OwnedFd>,
    running: Arc<Mutex<Running>>,
}

/// The scans that run.
#[derive(Debug, Default)]
struct Running {
    scans: usize,
    /// By storage.
    of_storage: HashMap<Storage, usize>,
}

/// What may hang as one.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
enum Storage {
    /// A filesystem, by its device number.
    Filesystem(u32),
    /// The block devices of a driver, by their major number.
    Driver(u32),
}

impl Storage {
    const fn of(file: FileIdentity) -> Self {
        if file.is_block_device() {
            Self::Driver(file.device >> 20)
        } else {
            Self::Filesystem(file.device)
        }
    }

    const fn limit(self) -> usize {
        match self {
            Self::Filesystem(_) => MAX_OF_FILESYSTEM,
            Self::Driver(_) => MAX_OF_DRIVER,
        }
    }
}

impl Running {
    /// Begins a scan of files of these storages. Returns whether it may run now.
    fn begin(&mut self, storages: &BTreeSet<Storage>) -> bool {
        let is_free =
            |of: &Storage| self.of_storage.get(of).is_none_or(|scans| *scans < of.limit());
        if self.scans >= MAX_SCANS || !storages.iter().all(is_free) {
            return false;
        }
        self.scans += 1;
        for storage in storages {
            *self.of_storage.entry(*storage).or_default() += 1;
        }
        true
    }

    fn end(&mut self, storages: &BTreeSet<Storage>) {
        self.scans = self.scans.saturating_sub(1);
        for storage in storages {
            if let Some(scans) = self.of_storage.get_mut(storage) {
                *scans = scans.saturating_sub(1);
            }
        }
        self.of_storage.retain(|_, scans| *scans > 0);
    }
}

impl HeaderScanner {
    pub(super) fn new(wake: OwnedFd) -> (Self, Receiver<HeaderReport>) {
        let (reports, receiver) = crossbeam_channel::unbounded();
        (Self { reports, wake: Arc::new(wake), running: Arc::default() }, receiver)
    }

    /// Starts a scan of a process. Returns whether it is to be called again later, because too many are
    /// running.
    pub(super) fn start_scan(&self, target: ScanTarget) -> bool {
        let storages: BTreeSet<Storage> = target.files.iter().copied().map(Storage::of).collect();
        if !lock(&self.running).begin(&storages) {
            return true;
        }
        let (reports, wake) = (self.reports.clone(), Arc::clone(&self.wake));
        let (running, of_scan) = (Arc::clone(&self.running), storages.clone());
        let ScanTarget { pid, start_ticks, .. } = target;
        let scan = move || {
            let report = target.scan().unwrap_or_else(|error| {
                warn!(pid, "Cannot read the headers of a VM's images: {error}");
                HeaderReport { pid, start_ticks, headers: Vec::new(), sizes: Vec::new() }
            });
            lock(&running).end(&of_scan);
            if reports.send(report).is_ok() {
                // Fails only if the counter is at its maximum, and then the eventfd is readable already.
                let _ = rustix::io::write(&wake, &[1; 8]);
            }
        };
        if let Err(error) = thread::Builder::new().name("headers".to_owned()).spawn(scan) {
            lock(&self.running).end(&storages);
            warn!(pid, "Cannot start a thread to read the headers of a VM's images: {error}");
        }
        false
    }
}

fn lock(running: &Mutex<Running>) -> MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A process whose images are to be scanned.
#[derive(Debug)]
pub(super) struct ScanTarget {
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// The files that it has open.
    pub(super) files: Vec<FileIdentity>,
    /// Files declared raw. Their guest controls what stands in the place of a header.
    pub(super) raw: Vec<FileIdentity>,
    /// Images by the paths of disks. The name of a backing file starts from the directory in the path, not from that of
    /// the file to which a link leads.
    pub(super) names: Vec<(FileIdentity, String)>,
    /// Whether some disk is declared raw and it is not known which file it is. Then only images of disks, and what is below
    /// them, are read.
    pub(super) is_raw_unclear: bool,
}

/// The images of a process, while they are scanned.
struct Images<'a> {
    process: &'a Process,
    open: &'a OpenFiles,
    paths: DiskPaths<'a>,
    /// Paths by which each image is named.
    names: HashMap<FileIdentity, Vec<String>>,
}

impl ScanTarget {
    /// The headers of the images that the process has open, each read through the process's own descriptor.
    fn scan(&self) -> io::Result<HeaderReport> {
        let process = Process::hold(&self.proc_root, self.pid)?;
        if process.stat()?.start_ticks != self.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut descriptors = Descriptors::of(&process, false)?.files;
        // An optical drive may have to load its disc first.
        descriptors.retain(|(_, path)| !path.starts_with("/dev/sr"));
        let open = files::open(&process, &descriptors, &[])?;
        let mut images = Images {
            process: &process,
            open: &open,
            paths: DiskPaths::new(&process, &open),
            names: HashMap::new(),
        };
        let mut queue = VecDeque::new();
        for (image, name) in &self.names {
            images.names.entry(*image).or_default().push(name.clone());
            queue.push_back(*image);
        }
        if !self.is_raw_unclear {
            queue.extend(open.files.iter().map(|file| file.identity));
        }
        let (mut seen, mut headers) = (HashSet::new(), Vec::new());
        while let Some(image) = queue.pop_front() {
            if self.raw.contains(&image) || seen.len() >= MAX_IMAGES || !seen.insert(image) {
                continue;
            }
            let header = images.header(image).unwrap_or_else(|error| {
                // Closed meanwhile, or not readable by the agent.
                debug!(pid = self.pid, ?image, "header not read: {error}");
                None
            });
            if let Some(header) = header {
                for below in header.below.iter().filter(|below| !header.raw.contains(below)) {
                    queue.push_front(*below);
                }
                headers.push(header);
            }
        }
        Ok(HeaderReport {
            pid: self.pid,
            start_ticks: self.start_ticks,
            headers,
            sizes: sizes(&process, &open),
        })
    }
}

/// The sizes of files whose filesystem may ask its server for them.
fn sizes(process: &Process, open: &OpenFiles) -> Vec<(FileIdentity, DiskSize)> {
    let slow = open.files.iter().filter(|file| !file.answers_from_memory);
    slow.filter_map(|file| {
        let fd = open.descriptors.get(&file.identity)?;
        Some((file.identity, process.measure_descriptor(*fd).ok()??.size))
    })
    .collect()
}

impl Images<'_> {
    /// The header of an image, if it has one; backing and data files are looked up among the open files.
    fn header(&mut self, image: FileIdentity) -> io::Result<Option<ImageHeader>> {
        let Some(fd) = self.open.descriptors.get(&image) else { return Ok(None) };
        let file = self.process.open_descriptor(*fd, image)?;
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
            if let Some(found) = self.paths.find(&path)? {
                self.names.entry(found).or_default().push(path);
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
    fn a_storage_that_hangs_keeps_no_other_waiting() {
        let file = |device| FileIdentity { device, file: 7 };
        let disk = |device| FileIdentity { device, file: kvmeter_common::ImageKey::NO_FILE };
        let on = |files: &[FileIdentity]| files.iter().copied().map(Storage::of).collect();
        let (server, local, mapped) = (on(&[file(1)]), on(&[file(2)]), on(&[disk(253 << 20 | 1)]));
        let mut running = Running::default();
        let hanging = std::iter::repeat_with(|| running.begin(&server)).take_while(|may| *may);
        assert_eq!(hanging.count(), MAX_OF_FILESYSTEM);
        assert!(!running.begin(&on(&[file(2), file(1)])), "one of its files is there");
        let disks = std::iter::repeat_with(|| running.begin(&mapped)).take_while(|may| *may);
        assert_eq!(disks.count(), MAX_OF_DRIVER);
        assert!(running.begin(&local) && running.begin(&on(&[])));
        running.end(&server);
        assert!(running.begin(&server) && !running.begin(&server));
        let others = (10..).take_while(|device| running.begin(&on(&[file(*device)]))).count();
        assert_eq!(others + MAX_OF_FILESYSTEM + MAX_OF_DRIVER + 2, MAX_SCANS);
    }

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

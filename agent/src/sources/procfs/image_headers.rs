//! Reads the headers of the images that a process has open: virtual size, backing file, data file. Only the headers know a
//! backing chain that no option names.
//!
//! Reading may block (NFS), so each process is scanned on a detached thread of its own.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use crossbeam_channel::{Receiver, Sender};
use tracing::{debug, warn};

use super::{
    options::Fields,
    process::Process,
    qcow2::{HEADER_LEN, Header},
};
use crate::inventory::{FileIdentity, ImageHeader};

/// Most scans that run at the same time. Further ones wait until one ends.
const MAX_SCANS: usize = 8;

/// Most images of a process that are scanned.
const MAX_IMAGES: usize = 1024;

/// The result of a scan.
#[derive(Debug)]
pub(super) struct HeaderReport {
    pub(super) pid: u32,
    /// Start time of the process, which tells it from a later one with the same id.
    pub(super) start_ticks: u64,
    pub(super) headers: Vec<ImageHeader>,
}

/// Scans processes in the background and sends a [`HeaderReport`] for each.
#[derive(Debug)]
pub(super) struct HeaderScanner {
    reports: Sender<HeaderReport>,
    /// Eventfd that is written to after a report was sent.
    wake: Arc<OwnedFd>,
    running: Arc<AtomicUsize>,
}

impl HeaderScanner {
    pub(super) fn new(wake: OwnedFd) -> (Self, Receiver<HeaderReport>) {
        let (reports, receiver) = crossbeam_channel::unbounded();
        (Self { reports, wake: Arc::new(wake), running: Arc::default() }, receiver)
    }

    /// Starts a scan of a process. Returns whether it is to be called again later, because [`MAX_SCANS`] are running.
    pub(super) fn start_scan(&self, target: ScanTarget) -> bool {
        if self.running.load(Relaxed) >= MAX_SCANS {
            return true;
        }
        self.running.fetch_add(1, Relaxed);
        let (reports, wake) = (self.reports.clone(), Arc::clone(&self.wake));
        let running = Arc::clone(&self.running);
        let ScanTarget { pid, start_ticks, .. } = target;
        let scan = move || {
            let headers = target.headers().unwrap_or_else(|error| {
                warn!(pid, "Cannot read the headers of a VM's images: {error}");
                Vec::new()
            });
            running.fetch_sub(1, Relaxed);
            if reports.send(HeaderReport { pid, start_ticks, headers }).is_ok() {
                // Fails only if the counter is at its maximum, and then the eventfd is readable already.
                let _ = rustix::io::write(&wake, &[1; 8]);
            }
        };
        if let Err(error) = thread::Builder::new().name("headers".to_owned()).spawn(scan) {
            self.running.fetch_sub(1, Relaxed);
            warn!(pid, "Cannot start a thread to read the headers of a VM's images: {error}");
        }
        false
    }
}

/// A process whose images are to be scanned.
#[derive(Debug)]
pub(super) struct ScanTarget {
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// Files declared raw. Their guest controls what stands in the place of a header.
    pub(super) raw: Vec<FileIdentity>,
}

impl ScanTarget {
    /// The headers of all images that the process has open, each read through the process's own descriptor.
    fn headers(&self) -> io::Result<Vec<ImageHeader>> {
        let process = Process::hold(&self.proc_root, self.pid)?;
        if process.stat()?.start_ticks != self.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut files: Vec<Candidate> = Vec::new();
        for (fd, path) in process.descriptors()? {
            // An optical drive may have to load its disc first.
            let is_file = path.starts_with('/') && !path.starts_with("/dev/sr");
            if is_file
                && files.len() < MAX_IMAGES
                && let Ok(Some(identity)) = process.identity_of_descriptor(fd)
                && files.iter().all(|known| known.identity != identity)
            {
                files.push(Candidate { identity, path: path.into(), fd });
            }
        }
        let may_have_header = |file: &&Candidate| !self.raw.contains(&file.identity);
        let read = |file: &Candidate| {
            file.header(&process, &files).unwrap_or_else(|error| {
                // Closed meanwhile, or not readable by the agent.
                debug!(pid = self.pid, path = %file.path.display(), "header not read: {error}");
                None
            })
        };
        Ok(files.iter().filter(may_have_header).filter_map(read).collect())
    }
}

/// An open file that may be an image.
#[derive(Debug)]
struct Candidate {
    identity: FileIdentity,
    path: PathBuf,
    /// The process's descriptor of the file.
    fd: u32,
}

impl Candidate {
    /// The file's header, if it has one; backing and data files are looked up among `files`.
    fn header(&self, process: &Process, files: &[Self]) -> io::Result<Option<ImageHeader>> {
        let file = process.open_descriptor(self.fd, self.identity)?;
        let mut bytes = [0; HEADER_LEN];
        let len = read_up_to(&file, &mut bytes)?;
        let Some(header) = Header::parse(&bytes[..len]) else { return Ok(None) };
        let backing = header.backing.and_then(|(offset, len)| {
            let mut name = vec![0; len];
            file.read_exact_at(&mut name, offset).ok()?;
            self.find(&String::from_utf8(name).ok()?, process, files)
        });
        let data = header.data_file.and_then(|name| self.find(&name, process, files));
        Ok(Some(ImageHeader {
            image: self.identity,
            size: header.size,
            below: backing.into_iter().chain(data).collect(),
            raw: backing.filter(|_| header.backing_is_raw).into_iter().chain(data).collect(),
        }))
    }

    /// The identity of the file that the header names. `None`: not found, or reached over the network.
    fn find(&self, name: &str, process: &Process, files: &[Self]) -> Option<FileIdentity> {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let path = dir.join(file_of(name)?);
        let only = |matches: &dyn Fn(&Path) -> bool| {
            let mut same = files.iter().filter(|file| matches(&file.path));
            same.next().filter(|_| same.next().is_none()).map(|file| file.identity)
        };
        only(&|known| known == path)
            .or_else(|| process.identity_in_root(&path).ok().flatten())
            // The name may be relative to a symlink through which the VMM opened the image.
            .or_else(|| only(&|known| known.file_name() == path.file_name()))
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

/// The path in a backing file's name; `None` where the name is a network location.
fn file_of(name: &str) -> Option<String> {
    if let Some(json) = name.strip_prefix("json:") {
        let fields = Fields::parse_json(json)?;
        let path = fields.get("filename").or_else(|| fields.get("file.filename"));
        return path.map(str::to_owned);
    }
    if let Some(path) = name.strip_prefix("file:") {
        return Some(path.to_owned());
    }
    // As in QEMU's path_has_protocol(): a colon before the first slash.
    let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    (!is_protocol && !name.is_empty()).then(|| name.to_owned())
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
        let json = r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/i/a"}}"#;
        assert_eq!(named(json).as_deref(), Some("/i/a"));
        for other in ["nbd://host/x", "rbd:pool/image", "json:{", ""] {
            assert_eq!(named(other), None, "{other}");
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

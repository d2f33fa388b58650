//! What images tell of themselves in their headers: how large the disk is that a guest sees, and on which other files they
//! are based. Only this tells of a chain that no option names.
//!
//! An image may lie on a server that does not answer, so each look has a thread of its own, that nobody waits for.

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

/// Looks that have not come to an end. More wait until one has.
const MAX_LOOKS: usize = 8;

/// No VM has more images open; others are not looked at.
const MAX_IMAGES: usize = 1024;

/// What the headers of a process's images tell.
#[derive(Debug)]
pub(super) struct HeaderReport {
    pub(super) pid: u32,
    /// When it started, so that it is not taken for another one.
    pub(super) start_ticks: u64,
    pub(super) headers: Vec<ImageHeader>,
}

/// Reads headers, and tells what they say to whoever has the other end.
#[derive(Debug)]
pub(super) struct HeaderScanner {
    tell: Sender<HeaderReport>,
    /// Written to when something was told.
    wake: Arc<OwnedFd>,
    looks: Arc<AtomicUsize>,
}

impl HeaderScanner {
    pub(super) fn new(wake: OwnedFd) -> (Self, Receiver<HeaderReport>) {
        let (tell, told) = crossbeam_channel::unbounded();
        (Self { tell, wake: Arc::new(wake), looks: Arc::default() }, told)
    }

    /// Begins to look at the images that a process has open, but for those of disks that are told to be raw. Whether it is
    /// to be called again, since too many looks are under way.
    pub(super) fn start_scan(&self, subject: ScanTarget) -> bool {
        if self.looks.load(Relaxed) >= MAX_LOOKS {
            return true;
        }
        self.looks.fetch_add(1, Relaxed);
        let Self { tell, wake, looks } = self;
        let (tell, wake, at_work) = (tell.clone(), Arc::clone(wake), Arc::clone(looks));
        let ScanTarget { pid, start_ticks, .. } = subject;
        let look = move || {
            let headers = subject.headers().unwrap_or_else(|error| {
                warn!(pid, "Cannot see on which files a VM's images are based: {error}");
                Vec::new()
            });
            at_work.fetch_sub(1, Relaxed);
            if tell.send(HeaderReport { pid, start_ticks, headers }).is_ok() {
                // Any number but 0 wakes it; it fails only for a counter that is full, and then it is awake.
                let _ = rustix::io::write(&wake, &[1; 8]);
            }
        };
        if let Err(error) = thread::Builder::new().name("headers".to_owned()).spawn(look) {
            looks.fetch_sub(1, Relaxed);
            warn!(pid, "Cannot look at a VM's images: {error}");
        }
        false
    }
}

/// Whose images are looked at.
#[derive(Debug)]
pub(super) struct ScanTarget {
    pub(super) proc_root: PathBuf,
    pub(super) pid: u32,
    pub(super) start_ticks: u64,
    /// Files that have no header.
    pub(super) raw: Vec<FileIdentity>,
}

impl ScanTarget {
    /// The headers of all images that the process has open. Each file is found by the process's own descriptor.
    fn headers(&self) -> io::Result<Vec<ImageHeader>> {
        let process = Process::hold(&self.proc_root, self.pid)?;
        if process.stat()?.start_ticks != self.start_ticks {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut files: Vec<Candidate> = Vec::new();
        for (number, path) in process.descriptors()? {
            // Optical drives may have to fetch their disc first.
            let is_file = path.starts_with('/') && !path.starts_with("/dev/sr");
            if is_file
                && files.len() < MAX_IMAGES
                && let Ok(Some(identity)) = process.identity_of_descriptor(number)
                && files.iter().all(|known| known.identity != identity)
            {
                files.push(Candidate { identity, path: path.into(), number });
            }
        }
        let may_have_header = |file: &&Candidate| !self.raw.contains(&file.identity);
        let look = |file: &Candidate| {
            file.header(&process, &files).unwrap_or_else(|error| {
                // Closed meanwhile, or not for everybody.
                debug!(pid = self.pid, path = %file.path.display(), "not looked into: {error}");
                None
            })
        };
        Ok(files.iter().filter(may_have_header).filter_map(look).collect())
    }
}

/// A file that may be an image.
#[derive(Debug)]
struct Candidate {
    identity: FileIdentity,
    path: PathBuf,
    /// A descriptor of it.
    number: u32,
}

impl Candidate {
    /// Its header, if it has one, with what it says of the other files.
    fn header(&self, process: &Process, files: &[Self]) -> io::Result<Option<ImageHeader>> {
        let file = process.open_descriptor(self.number, self.identity)?;
        let mut octets = [0; HEADER_LEN];
        let len = read_up_to(&file, &mut octets)?;
        let Some(header) = Header::parse(&octets[..len]) else { return Ok(None) };
        let backing = header.backing.and_then(|(place, len)| {
            let mut name = vec![0; len];
            file.read_exact_at(&mut name, place).ok()?;
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

    /// Which of the files another one is that its header names.
    fn find(&self, name: &str, process: &Process, files: &[Self]) -> Option<FileIdentity> {
        let dir = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let path = dir.join(file_of(name)?);
        let by = |is_so: &dyn Fn(&Path) -> bool| {
            let mut same = files.iter().filter(|file| is_so(&file.path));
            same.next().filter(|_| same.next().is_none()).map(|file| file.identity)
        };
        by(&|known| known == path)
            .or_else(|| process.identity_in_root(&path).ok().flatten())
            // It may be relative to a link by which the VMM has found the image.
            .or_else(|| by(&|known| known.file_name() == path.file_name()))
    }
}

fn read_up_to(file: &File, octets: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < octets.len() {
        match file.read_at(&mut octets[len..], len as u64) {
            Ok(0) => break,
            Ok(more) => len += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

/// The path in an image's name for another; nothing where that is reached by the network.
fn file_of(name: &str) -> Option<String> {
    if let Some(json) = name.strip_prefix("json:") {
        let fields = Fields::parse_json(json)?;
        let path = fields.get("filename").or_else(|| fields.get("file.filename"));
        return path.map(str::to_owned);
    }
    if let Some(path) = name.strip_prefix("file:") {
        return Some(path.to_owned());
    }
    // As QEMU does it: a colon before the first slash ends a protocol.
    let is_protocol = name.split('/').next().is_some_and(|first| first.contains(':'));
    (!is_protocol && !name.is_empty()).then(|| name.to_owned())
}

/// All that is made of octets, for the fuzzer.
pub(super) fn interpret(octets: &[u8]) {
    let data_file = Header::parse(octets).and_then(|header| header.data_file);
    let name = String::from_utf8_lossy(octets);
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

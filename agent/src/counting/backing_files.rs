//! Finds the files of a disk, including its backing chain, among the files that a VM's process has open.

use std::collections::{HashMap, HashSet};

use kvmeter_common::ImageKey;
use rustix::fs::{FileType, Statx};

use crate::inventory::{DomainDisk, FileIdentity, ImageHeader, OpenFile, PathAnswer, VmProcess};

/// A file of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackingFile<'a> {
    pub(super) file: &'a OpenFile,
    /// Whether more than the header of an unassigned file makes it a file of the disk.
    pub(super) is_certain: bool,
}

/// The open files of one process, by what they are looked for.
#[derive(Debug)]
pub(super) struct BackingFiles<'a> {
    process: &'a VmProcess,
    open: HashMap<FileIdentity, &'a OpenFile>,
    headers: HashMap<FileIdentity, &'a ImageHeader>,
    /// The headers that name a file as the one below.
    above: HashMap<FileIdentity, Vec<&'a ImageHeader>>,
    /// Images that the process's own description of its disks names first.
    named: HashSet<FileIdentity>,
    /// Those of them that are declared raw.
    raw: HashSet<FileIdentity>,
}

impl<'a> BackingFiles<'a> {
    pub(super) fn new(process: &'a VmProcess) -> Self {
        let mut open = HashMap::new();
        for file in &process.files {
            open.entry(file.identity).or_insert(file);
        }
        let mut above: HashMap<_, Vec<_>> = HashMap::new();
        for header in &process.headers {
            for below in &header.below {
                above.entry(*below).or_default().push(header);
            }
        }
        let headers = process.headers.iter().map(|header| (header.image, header)).collect();
        let mut files =
            Self { process, open, headers, above, named: HashSet::new(), raw: HashSet::new() };
        for disk in &process.devices.disks {
            if let Some(file) = files.at(&disk.resource) {
                files.named.insert(file.identity);
                if !disk.may_have_header() {
                    files.raw.insert(file.identity);
                }
            }
        }
        files
    }

    /// The open file that a path means.
    fn at(&self, path: &str) -> Option<&'a OpenFile> {
        match self.process.paths.get(path)? {
            PathAnswer::Open(identity) => self.open.get(identity).copied(),
            PathAnswer::Closed(_) | PathAnswer::Unknown(_) => None,
        }
    }

    /// Returns the files of a disk, the one that its description names first at the start. `is_used` returns whether the
    /// VMM does I/O on an unassigned file as on an image.
    pub(super) fn of_disk(
        &self,
        disk: &DomainDisk,
        is_of_domain: bool,
        is_used: impl Fn(&OpenFile) -> bool,
    ) -> Vec<BackingFile<'a>> {
        let named = std::iter::once(&disk.resource).chain(&disk.others);
        let named = named.filter_map(|path| self.at(path));
        let mut files: Vec<_> = named.map(|file| BackingFile { file, is_certain: true }).collect();
        // libvirt reports every image of its disks.
        if !is_of_domain && !self.headers.is_empty() {
            self.add_stacked(&mut files, is_used);
        }
        files
    }

    /// Adds the backing files of `files` according to their headers, and overlays that were created since the VMM
    /// started.
    fn add_stacked(&self, files: &mut Vec<BackingFile<'a>>, is_used: impl Fn(&OpenFile) -> bool) {
        // Declared raw by the headers of this chain.
        let mut raw: HashSet<FileIdentity> = HashSet::new();
        let mut known: HashSet<_> = files.iter().map(|known| known.file.identity).collect();
        let mut at = 0;
        while let Some(&BackingFile { file, is_certain }) = files.get(at) {
            at += 1;
            let mut add = |file: &'a OpenFile, is_certain| {
                if known.insert(file.identity) {
                    files.push(BackingFile { file, is_certain });
                }
            };
            let has_header = |image| !self.raw.contains(&image) && !raw.contains(&image);
            for header in self.above.get(&file.identity).into_iter().flatten() {
                // An image of another disk may share the backing file.
                if has_header(header.image)
                    && !self.named.contains(&header.image)
                    && let Some(above) = self.open.get(&header.image)
                    && is_used(above)
                {
                    add(above, false);
                }
            }
            let own = self.headers.get(&file.identity);
            if let Some(own) = own.filter(|own| has_header(own.image)) {
                for below in own.below.iter().filter_map(|is| self.open.get(is)) {
                    add(below, is_certain);
                }
                raw.extend(&own.raw);
            }
        }
    }
}

/// The identity of a regular file or block device from statx(2) with `TYPE` and `INO`; `None` = it is neither.
pub(crate) fn identity_of(found: &Statx) -> Option<FileIdentity> {
    match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::RegularFile => Some(FileIdentity {
            device: FileIdentity::kernel_device(found.stx_dev_major, found.stx_dev_minor),
            file: found.stx_ino,
        }),
        FileType::BlockDevice => Some(FileIdentity {
            device: FileIdentity::kernel_device(found.stx_rdev_major, found.stx_rdev_minor),
            file: ImageKey::NO_FILE,
        }),
        _ => None,
    }
}

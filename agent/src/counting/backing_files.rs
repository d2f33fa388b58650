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

    /// Why `files` may not be all files of a disk; `None` = they are.
    pub(super) fn gap(
        &self,
        files: &[BackingFile<'_>],
        is_of_domain: bool,
    ) -> Option<&'static str> {
        let has = |images: &[FileIdentity]| {
            // libvirt reports every image of its disks.
            !is_of_domain && files.iter().any(|of| images.contains(&of.file.identity))
        };
        if has(&self.process.unreadable) {
            return Some(
                "the header of an image cannot be read, so the files below it are not known",
            );
        }
        has(&self.process.unread).then_some(
            "the header of an image has not been read yet, so the files below it are not known",
        )
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::{DiskSize, StorageAccess, StorageMedia, StorageSource, Submission};

    #[test]
    fn a_disk_of_which_a_header_is_not_read_has_a_gap() {
        let file = |number| OpenFile {
            path: format!("/{number}"),
            identity: FileIdentity { device: 1, file: number },
            mount: 1,
            device: 1,
            is_direct: true,
            is_writable: true,
            has_write_lock: true,
            has_iomap: true,
            answers_from_memory: true,
        };
        let (top, base, other) = (file(1), file(2), file(3));
        let mut process = VmProcess {
            files: vec![top.clone(), base.clone(), other.clone()],
            headers: vec![ImageHeader {
                image: top.identity,
                size: 1 << 30,
                below: vec![base.identity],
                raw: Vec::new(),
            }],
            ..VmProcess::default()
        };
        let disk = DomainDisk {
            target: "d0".to_owned(),
            source: StorageSource::Sparse,
            format: "qcow2".to_owned(),
            resource: "/1".to_owned(),
            access: StorageAccess::ReadWrite,
            media: StorageMedia::HardDisk,
            bus: String::new(),
            size: DiskSize::default(),
            others: Vec::new(),
            chain_is_in_image: true,
            submission: Submission::Unknown,
        };
        process.paths.insert("/1".to_owned(), PathAnswer::Open(top.identity));
        process.devices.disks.push(disk.clone());
        let gap = |unread: &[&OpenFile], unreadable: &[&OpenFile], is_of_domain| {
            let identities = |files: &[&OpenFile]| files.iter().map(|file| file.identity).collect();
            let process = VmProcess {
                unread: identities(unread),
                unreadable: identities(unreadable),
                ..process.clone()
            };
            let files = BackingFiles::new(&process);
            let its = files.of_disk(&disk, is_of_domain, |_| true);
            files.gap(&its, is_of_domain)
        };
        assert_eq!(gap(&[], &[], false), None);
        assert_eq!(gap(&[&other], &[&other], false), None);
        for image in [&top, &base] {
            assert!(gap(&[image], &[], false).is_some_and(|why| why.contains("yet")));
            assert!(gap(&[], &[image], false).is_some_and(|why| why.contains("cannot be read")));
        }
        assert_eq!(gap(&[&top], &[&top], true), None, "libvirt reports each image");
    }
}

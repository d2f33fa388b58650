//! Which of the files that a VM's process has open a disk is made of.

use std::{collections::HashMap, io};

use kvmeter_common::ImageKey;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx,
};

use crate::inventory::{DomainDisk, FileIdentity, ImageHeader, OpenFile, VmProcess};

/// A file of a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackingFile<'a> {
    pub(super) file: &'a OpenFile,
    /// Not only by the header of a file that is not known to be an image.
    pub(super) is_certain: bool,
}

/// Finds files by the names that disks have for them.
#[derive(Debug, Default)]
pub(super) struct BackingFiles {
    /// The files that paths lead to under which the process has no file open.
    paths: HashMap<String, FileIdentity>,
    /// The same as of the count before.
    paths_before: HashMap<String, FileIdentity>,
}

impl BackingFiles {
    /// The disks of the VM are about to be counted again.
    pub(super) fn begin(&mut self) {
        self.paths_before = std::mem::take(&mut self.paths);
    }

    /// The files of a disk, the one that is named first before the others. `is_used` says of a file that is not known to
    /// be any disk's whether the VMM does I/O on it as on one.
    pub(super) fn of_disk<'a>(
        &mut self,
        process: &'a VmProcess,
        disk: &DomainDisk,
        is_of_domain: bool,
        is_used: impl Fn(&OpenFile) -> bool,
    ) -> Vec<BackingFile<'a>> {
        let named = std::iter::once(&disk.resource).chain(&disk.others);
        let named = named.filter_map(|path| self.find(&process.files, path));
        let mut files: Vec<_> = named.map(|file| BackingFile { file, is_certain: true }).collect();
        // libvirt tells of every image itself.
        if !is_of_domain && !process.headers.is_empty() {
            self.add_stacked(process, &mut files, is_used);
        }
        files
    }

    /// Adds the files on which these are based by their headers, and those that were put on top of them since the VMM
    /// began.
    fn add_stacked<'a>(
        &mut self,
        process: &'a VmProcess,
        files: &mut Vec<BackingFile<'a>>,
        is_used: impl Fn(&OpenFile) -> bool,
    ) {
        let (mut named, mut raw) = (Vec::new(), Vec::new());
        for disk in &process.devices.disks {
            let Some(file) = self.find(&process.files, &disk.resource) else { continue };
            named.push(file.identity);
            raw.extend((!disk.may_have_header()).then_some(file.identity));
        }
        let open = |is: FileIdentity| process.files.iter().find(|file| file.identity == is);
        let mut at = 0;
        while let Some(&BackingFile { file, is_certain }) = files.get(at) {
            at += 1;
            let mut add = |file: &'a OpenFile, is_certain| {
                if files.iter().all(|known| known.file.identity != file.identity) {
                    files.push(BackingFile { file, is_certain });
                }
            };
            let has_header = |header: &&ImageHeader| !raw.contains(&header.image);
            let own = process.headers.iter().filter(has_header);
            // An image with a disk of its own may be based on the same one.
            let above = own.clone().filter(|header| {
                header.below.contains(&file.identity) && !named.contains(&header.image)
            });
            for above in above.filter_map(|header| open(header.image)).filter(|file| is_used(file))
            {
                add(above, false);
            }
            let own = own.clone().find(|header| header.image == file.identity);
            if let Some(own) = own {
                for below in own.below.iter().filter_map(|is| open(*is)) {
                    add(below, is_certain);
                }
                raw.extend(&own.raw);
            }
        }
    }

    /// The file of this path. The process may have it by another name, or have its own root: then it is the one that
    /// the path leads to here, or where it leads nowhere the only one with that last name.
    fn find<'a>(&mut self, files: &'a [OpenFile], path: &str) -> Option<&'a OpenFile> {
        if let Some(file) = files.iter().find(|file| file.path == path) {
            return Some(file);
        }
        // Relative to what, only the process knows.
        let leads_to = if path.starts_with('/') {
            identity_at(path)
        } else {
            Err(io::ErrorKind::NotFound.into())
        };
        let identity = match leads_to {
            Ok(identity) => identity?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
                let mut same = files.iter().filter(|file| name(&file.path) == name(path));
                return same.next().filter(|_| same.next().is_none());
            }
            // The kernel has forgotten it, and would have to ask.
            Err(_) => *self.paths_before.get(path)?,
        };
        self.paths.insert(path.to_owned(), identity);
        files.iter().find(|file| file.identity == identity)
    }
}

/// The file at a path, as far as the kernel knows it without asking a disk or a server; `None` = it is no file.
///
/// # Errors
///
/// Those of openat2(2); `EAGAIN` where a disk or a server would have to be asked.
pub(super) fn identity_at(path: &str) -> io::Result<Option<FileIdentity>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let found = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED)?;
    let how = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = statx(&found, "", how, StatxFlags::TYPE | StatxFlags::INO)?;
    Ok(identity_of(&found))
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

    fn file(path: &str, file: u64) -> OpenFile {
        OpenFile {
            path: path.to_owned(),
            identity: FileIdentity { device: 1, file },
            mount: 1,
            device: 1,
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
        let identity = identity_at(&real.to_string_lossy()).unwrap().unwrap();
        let files = [
            file("/x/disk", 1),
            OpenFile { identity, ..file("/elsewhere/real", 0) },
            file("/y/disk", 2),
            file("/jail/root.ext4", 3),
        ];
        let mut files_of_disks = BackingFiles::default();
        let mut found =
            |path: &str| files_of_disks.find(&files, path).map(|file| file.path.as_str());
        assert_eq!(found("/y/disk"), Some("/y/disk"));
        assert_eq!(found(&link.to_string_lossy()), Some("/elsewhere/real"));
        assert_eq!(found("root.ext4"), Some("/jail/root.ext4"));
        assert_eq!(found("disk"), None, "there are two of that name");
        assert_eq!(found("/none"), None);
    }
}

//! Finds the files of a disk, including its backing chain, among the files that a VM's process has open.

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
    /// Whether more than the header of an unassigned file makes it a file of the disk.
    pub(super) is_certain: bool,
}

/// Finds open files by the paths in the descriptions of disks.
#[derive(Debug, Default)]
pub(super) struct BackingFiles {
    /// Resolved paths that differ from the path under which the process has the file open.
    paths: HashMap<String, FileIdentity>,
    /// `paths` of the previous round.
    paths_before: HashMap<String, FileIdentity>,
}

impl BackingFiles {
    /// Begins a round over the disks of the VM.
    pub(super) fn begin(&mut self) {
        self.paths_before = std::mem::take(&mut self.paths);
    }

    /// Returns the files of a disk, the one that its description names first at the start. `is_used` returns whether the
    /// VMM does I/O on an unassigned file as on an image.
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
        // libvirt reports every image of its disks.
        if !is_of_domain && !process.headers.is_empty() {
            self.add_stacked(process, &mut files, is_used);
        }
        files
    }

    /// Adds the backing files of `files` according to their headers, and overlays that were created since the VMM
    /// started.
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
            // An image of another disk may share the backing file.
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

    /// Returns the open file with this path. The process may have opened it by another name, or in its own root: then the
    /// path is resolved on the host, and if it does not exist there, the only open file with the same last component
    /// matches.
    fn find<'a>(&mut self, files: &'a [OpenFile], path: &str) -> Option<&'a OpenFile> {
        if let Some(file) = files.iter().find(|file| file.path == path) {
            return Some(file);
        }
        // The directory that a relative path starts from is known to the process only.
        let resolved = if path.starts_with('/') {
            identity_at(path)
        } else {
            Err(io::ErrorKind::NotFound.into())
        };
        let identity = match resolved {
            Ok(identity) => identity?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let name = |path: &str| path.rsplit('/').next().map(str::to_owned);
                let mut same = files.iter().filter(|file| name(&file.path) == name(path));
                return same.next().filter(|_| same.next().is_none());
            }
            // The path is not in the kernel's dentry cache; resolving it could block.
            Err(_) => *self.paths_before.get(path)?,
        };
        self.paths.insert(path.to_owned(), identity);
        files.iter().find(|file| file.identity == identity)
    }
}

/// Resolves a path from the kernel's dentry cache, without I/O; `None` = neither a regular file nor a block device.
///
/// # Errors
///
/// Those of openat2(2); `EAGAIN` if a disk or a server would have to be accessed.
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
    fn a_file_is_found_by_its_path_or_its_target() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&real, b"").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        // It was just created, so it is in the dentry cache.
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

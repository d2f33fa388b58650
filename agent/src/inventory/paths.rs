//! Which open file of a process is at a path. The source of processes answers this for every path of a disk; whoever
//! wants a disk's counters, size, header or backing file looks here, so that all have the same answer.

use super::{FileIdentity, OpenFile, VmProcess};

/// What a path means to a VM's process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PathAnswer {
    /// The process has the file open that is at the path, or was there when the process opened it.
    Open(FileIdentity),
    /// A file is at the path, and the process does not have it open.
    Closed(FileIdentity),
    /// It is not known which file it is, for this reason.
    Unknown(String),
}

impl VmProcess {
    /// The open file that a path of a disk means; `None` = there is none, or it is not known.
    #[must_use]
    pub fn file_at(&self, path: &str) -> Option<&OpenFile> {
        match self.paths.get(path)? {
            PathAnswer::Open(identity) => self.file(*identity),
            PathAnswer::Closed(_) | PathAnswer::Unknown(_) => None,
        }
    }

    /// The open file with this identity.
    #[must_use]
    pub fn file(&self, identity: FileIdentity) -> Option<&OpenFile> {
        self.files.iter().find(|file| file.identity == identity)
    }

    /// The open images of disks that may have a header, with the paths by which they are named.
    pub(crate) fn image_names(&self) -> Vec<(FileIdentity, String)> {
        let disks = self.devices.disks.iter().filter(|disk| disk.may_have_header());
        let paths = disks.flat_map(|disk| std::iter::once(&disk.resource).chain(&disk.others));
        paths.filter_map(|path| Some((self.file_at(path)?.identity, path.clone()))).collect()
    }

    /// Whether a disk is declared raw of which it is not known which file it is.
    pub(crate) fn is_raw_unclear(&self) -> bool {
        let mut raw = self.devices.disks.iter().filter(|disk| !disk.may_have_header());
        raw.any(|disk| self.file_at(&disk.resource).is_none())
    }
}

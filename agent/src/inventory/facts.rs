//! What the sources report about VMs: processes, and domains of libvirt.

use std::collections::BTreeMap;

use kvmeter_common::ImageKey;

use super::{
    AdminState, AutoStart, DiskSize, Memory, OperState, PathAnswer, Persistence, StorageAccess,
    StorageMedia, StorageSource, Vcpu, VmUuid, indexes::Identity,
};
use crate::{account::Account, counters::VmSlot};

/// A VM as seen from its process.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VmProcess {
    /// Process id.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
    /// Start in ns since boot.
    pub started_ns: u64,
    /// Whether it ran its VM before the agent was started: neither is news.
    pub was_there: bool,
    /// Name from the command line, or made of the program's name and the process id.
    pub name: String,
    /// UUID from the command line.
    pub uuid: Option<VmUuid>,
    /// Number of vCPUs.
    pub cpus: u32,
    /// Maximum number of vCPUs; `None` = not known.
    pub max_cpus: Option<u32>,
    /// Memory from the command line, or estimated.
    pub memory: Memory,
    /// The record of its process; `None` = not counted.
    pub slot: Option<VmSlot>,
    /// The vCPUs in ascending order of id, no id twice.
    pub vcpus: Vec<Vcpu>,
    /// Devices from the command line.
    pub devices: Devices,
    /// The interfaces of the host of which it holds descriptors.
    pub taps: Taps,
    /// The regular files and block devices that the process has open.
    pub files: Vec<OpenFile>,
    /// What the paths of its disks mean to it: those of `devices`, and those that libvirt has for its domain.
    pub paths: BTreeMap<String, PathAnswer>,
    /// The headers of images among `files`.
    pub headers: Vec<ImageHeader>,
    /// Images that belong to backing chains which only headers tell, and whose headers have not been read yet.
    pub unread: Vec<FileIdentity>,
    /// Those whose headers cannot be read.
    pub unreadable: Vec<FileIdentity>,
    /// Whether it has an io_uring ring.
    pub has_io_uring: bool,
    /// Whether it is another VMM than QEMU and has a context of io_submit(2): any of its requests may go by that.
    pub has_aio: bool,
    /// Whether it uses positioned I/O only (pread and pwrite, as QEMU does), and never seeks before it reads or writes.
    pub has_positions: bool,
    /// Whether it has a KVM VM open.
    pub has_kvm: bool,
    /// Whether it was started to be paused until a user resumes it, and has not run yet.
    pub starts_stopped: bool,
    /// What could not be found out about it, each with the reason.
    pub gaps: Vec<String>,
    /// The control group of a domain in which it is.
    pub machine: Option<Machine>,
    /// On whose account it is; `None` = it is root's and in no container, or that of a domain of root's libvirt.
    pub account: Option<Account>,
}

/// Whether the vCPUs of a process run.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum VcpuState {
    /// Not seen.
    #[default]
    Unknown,
    /// They run, or their guest has halted them.
    Running,
    /// Their VMM keeps them from running.
    Stopped {
        /// Whether a user has asked for that.
        by_user: bool,
    },
}

/// A libvirt domain that runs, by the control group in which libvirt puts its process: only root can put one there.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Machine {
    /// libvirt's driver: `qemu`, `ch`.
    pub driver: String,
    /// The domain's number in this run of it.
    pub id: u32,
}

/// Which process is a domain's, as libvirt's own files have it.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DomainProcess {
    /// The files cannot be seen, or the driver writes none.
    #[default]
    Untold,
    /// None, or none yet.
    None,
    /// The process with this id.
    Pid(u32),
}

/// The devices of a VM, as its command line or configuration file lists them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Devices {
    /// Disks in the order of the command line, no name twice.
    pub disks: Vec<DomainDisk>,
    /// Network interfaces in the order of the command line.
    pub nics: Vec<DomainNic>,
}

/// A regular file or block device that a process has open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenFile {
    /// Path as `/proc/PID/fd` shows it.
    pub path: String,
    /// Identity from statx(2).
    pub identity: FileIdentity,
    /// Mount id.
    pub mount: u64,
    /// Device number in the kernel's records: of the block device itself, or of the file's filesystem.
    pub device: u32,
    /// Whether it is open with `O_DIRECT`.
    pub is_direct: bool,
    /// Whether it is open for writing.
    pub is_writable: bool,
    /// Whether QEMU has locked it as an image that it may write.
    pub has_write_lock: bool,
    /// Whether direct I/O on it goes through iomap.
    pub has_iomap: bool,
    /// Whether its filesystem has its attributes in memory; if not, asking for its size may wait for a server.
    pub answers_from_memory: bool,
}

impl OpenFile {
    /// Key of the image record in which the kernel counts a VM's I/O on this file.
    #[must_use]
    pub const fn key(&self, vm: VmSlot) -> ImageKey {
        ImageKey { vm: vm.0, device: self.device, file: self.identity.file }
    }
}

/// The header of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageHeader {
    /// Identity of the image.
    pub image: FileIdentity,
    /// Virtual size in bytes.
    pub size: u64,
    /// Its backing file and its external data file.
    pub below: Vec<FileIdentity>,
    /// The files of `below` that are declared raw. Their start must not be parsed as a header: a guest controls these bytes.
    pub raw: Vec<FileIdentity>,
}

/// Identity of a regular file or block device, independent of its path.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FileIdentity {
    /// Device number of a block device, or of the filesystem of a file, encoded by [`kernel_device`](Self::kernel_device).
    pub device: u32,
    /// Inode number; of a block device [`ImageKey::NO_FILE`].
    pub file: u64,
}

impl FileIdentity {
    /// Whether it is a block device.
    #[must_use]
    pub const fn is_block_device(self) -> bool {
        self.file == ImageKey::NO_FILE
    }

    /// Encodes a device number as the kernel does: `major << 20 | minor`.
    #[must_use]
    pub const fn kernel_device(major: u32, minor: u32) -> u32 {
        major << 20 | minor
    }
}

/// A VM as libvirt knows it, running or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Domain {
    /// UUID in network byte order.
    pub uuid: VmUuid,
    /// Name.
    pub name: String,
    /// libosinfo's id of the guest's operating system; empty = not known.
    pub os_type: String,
    /// The state in which it was found.
    pub state: FoundState,
    /// Whether libvirt reports it as active.
    pub is_active: bool,
    /// vmAutoStart.
    pub auto_start: AutoStart,
    /// vmPersistent.
    pub persistence: Persistence,
    /// Its process.
    pub process: DomainProcess,
    /// The control group of its process, if there are such groups; `None` = it does not run, or its driver makes none.
    pub machine: Option<Machine>,
    /// The user whose libvirt it is, as that of a session; `None` = it is root's.
    pub user: Option<u32>,
    /// Number of plugged-in vCPUs; `None` = not known.
    pub cpus: Option<u32>,
    /// Maximum number of vCPUs; `None` = not known.
    pub max_cpus: Option<u32>,
    /// Ids of the vCPUs; empty = the domain's XML does not list them.
    pub vcpu_ids: Vec<u32>,
    /// The memory columns.
    pub memory: Memory,
    /// Disks in the order of the XML.
    pub disks: Vec<DomainDisk>,
    /// Network interfaces in the order of the XML.
    pub nics: Vec<DomainNic>,
}

/// The state in which libvirt reports a domain.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct FoundState {
    /// vmAdminState.
    pub admin_state: AdminState,
    /// vmOperState.
    pub oper_state: OperState,
    /// Whether it is paused for an unknown reason; libvirt may report a guest panic next.
    pub is_unexplained: bool,
}

/// A disk of a [`Domain`].
#[derive(Clone, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the fields are those of `Disk`")]
pub struct DomainDisk {
    pub target: String,
    pub source: StorageSource,
    pub format: String,
    pub resource: String,
    pub access: StorageAccess,
    pub media: StorageMedia,
    pub bus: String,
    pub size: DiskSize,
    /// Further images of the disk: its backing chain, and the target of a block copy.
    pub others: Vec<String>,
    /// Whether the rest of the backing chain is known from the image headers only.
    pub chain_is_in_image: bool,
    /// How the VMM submits its requests to the kernel.
    pub submission: Submission,
}

impl DomainProcess {
    /// What holds once the process has ended.
    pub(super) const fn after_end(self) -> Self {
        match self {
            Self::Untold => Self::Untold,
            Self::None | Self::Pid(_) => Self::None,
        }
    }
}

impl Domain {
    /// Sets whether it starts with the host, unless its kind cannot. Returns whether the value changed.
    pub(super) fn set_auto_start(&mut self, starts: bool) -> bool {
        let now = if starts { AutoStart::Enabled } else { AutoStart::Disabled };
        let is_new = ![now, AutoStart::Unknown].contains(&self.auto_start);
        if is_new {
            self.auto_start = now;
        }
        is_new
    }
}

impl DomainDisk {
    /// The paths of its images.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> + Clone {
        std::iter::once(&self.resource).chain(&self.others).map(String::as_str)
    }

    /// Whether the image may be probed for a header. An explicitly raw image must not be, and neither must one with a footer:
    /// its guest controls those bytes.
    pub(crate) fn may_have_header(&self) -> bool {
        let has_none = ["raw", "fixed-vhd", "fixedvhd", "vhd"].contains(&self.format.as_str());
        self.chain_is_in_image || !has_none
    }

    /// Sets the size by that of its file. The virtual size of an image with a format is left to its header.
    pub(crate) fn set_file_size(&mut self, size: DiskSize) {
        let is_plain = matches!(self.source, StorageSource::Raw | StorageSource::Block);
        self.size = DiskSize { defined: size.defined.filter(|_| is_plain), ..size };
    }
}

/// How a VMM is configured to submit its requests to the kernel.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Submission {
    /// What is configured is not known.
    #[default]
    Unknown,
    /// Nothing is configured, so that the VMM does what it does by itself. A QEMU does not use io_submit(2) then (`aio` of
    /// BlockdevOptionsFile in its qapi/block-core.json).
    Unset,
    /// System calls of worker threads.
    Threads,
    /// io_submit(2).
    Native,
    /// io_uring(7).
    IoUring,
}

impl Submission {
    /// Parses the value of QEMU's `aio=` and libvirt's `io=`; empty = there is none.
    #[must_use]
    pub fn of(word: &str) -> Self {
        match word {
            "" => Self::Unset,
            "threads" => Self::Threads,
            "native" => Self::Native,
            "io_uring" => Self::IoUring,
            _ => Self::Unknown,
        }
    }
}

/// A network interface of a [`Domain`] or [`VmProcess`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DomainNic {
    /// Link-layer address.
    pub mac: Vec<u8>,
    /// Name of the host's interface. It is only text: [`Taps`] says which interfaces a process holds.
    pub device: Option<String>,
    /// What is known of a tap whose name is not told; `None` = its name is told, or the host has no interface for it.
    pub unnamed: Option<UnnamedTap>,
    /// Model of the device in the guest.
    pub model: String,
}

/// A tap whose name is not on the command line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UnnamedTap {
    /// The process was started with these descriptors of it.
    Descriptors(Vec<u32>),
    /// The kernel named it when the process opened it. The process opened its taps in ascending order of these numbers.
    Opened(usize),
}

/// The taps and macvtaps of a process.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Taps {
    /// Their names, in ascending order of the first descriptor of each, of a process in the host's network namespace. A tap
    /// that the process was given may be in another one: the kernel does not tell.
    Held(Vec<String>),
    /// Their names are of another network namespace than the agent's.
    Elsewhere,
    /// The process's descriptors or its network namespace could not be read.
    Unknown,
}

impl Default for Taps {
    fn default() -> Self {
        Self::Held(Vec::new())
    }
}

impl VmProcess {
    /// The files of disks that are declared raw.
    pub(crate) fn raw_files(&self) -> impl Iterator<Item = FileIdentity> {
        let raw = self.devices.disks.iter().filter(|disk| !disk.may_have_header());
        raw.filter_map(|disk| self.file_at(&disk.resource)).map(|file| file.identity)
    }

    /// Completes the disks with the sizes of files that were asked for apart.
    pub(crate) fn note_sizes(&mut self, sizes: &[(FileIdentity, DiskSize)]) {
        for disk in &mut self.devices.disks {
            let Some(PathAnswer::Open(file)) = self.paths.get(&disk.resource) else { continue };
            let Some((_, size)) = sizes.iter().find(|(of, _)| of == file) else { continue };
            disk.set_file_size(*size);
        }
    }

    /// Completes the disks with the headers of their images.
    pub(crate) fn note_headers(&mut self, headers: &[ImageHeader]) {
        self.headers = headers.to_vec();
        for disk in &mut self.devices.disks {
            let header = match self.paths.get(&disk.resource) {
                Some(PathAnswer::Open(image)) => headers.iter().find(|of| of.image == *image),
                _ => None,
            };
            if let Some(header) = header.filter(|_| disk.may_have_header()) {
                disk.size.defined = Some(header.size);
                if disk.format == "raw" {
                    disk.format = "qcow2".to_owned();
                }
                if disk.source == StorageSource::Raw {
                    disk.source = StorageSource::Sparse;
                }
            }
        }
    }

    pub(super) const fn identity(&self) -> Identity {
        Identity::Process { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// Parses a link-layer address: hexadecimal octets with colons between them. Empty if the text is invalid.
pub(crate) fn mac(text: &str) -> Vec<u8> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .take(32)
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() == 2))
        .collect();
    octets.unwrap_or_default()
}

//! What the sources tell of VMs: processes, and domains of libvirt.

use kvmeter_common::ImageKey;

use super::{
    AdminState, AutoStart, DiskSize, Memory, OperState, Persistence, StorageAccess, StorageMedia,
    StorageSource, Vcpu, VmUuid, indexes::Identity,
};
use crate::counters::VmSlot;

/// A VM as its process shows it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct VmProcess {
    /// Process id.
    pub pid: u32,
    /// Start in clock ticks since boot.
    pub start_ticks: u64,
    /// The same in ns.
    pub started_ns: u64,
    /// By its command line, or made of its program and process id.
    pub name: String,
    /// By its command line.
    pub uuid: Option<VmUuid>,
    /// vCPUs that it has.
    pub cpus: u32,
    /// vCPUs that it can have.
    pub max_cpus: u32,
    /// By its command line, or estimated.
    pub memory: Memory,
    /// The record of its process; `None` = not counted.
    pub slot: Option<VmSlot>,
    /// In ascending order of id, no id twice.
    pub vcpus: Vec<Vcpu>,
    /// By its command line.
    pub devices: Devices,
    /// The regular files and block devices that it has open.
    pub files: Vec<OpenFile>,
    /// What is known of the images among them.
    pub headers: Vec<ImageHeader>,
    /// Whether it has a ring of io_uring.
    pub has_io_uring: bool,
    /// Whether it says with each request where in the file, and does not go there before, as QEMU does.
    pub has_positions: bool,
    /// Whether it holds a VM of KVM.
    pub has_kvm: bool,
}

/// The devices of a VM, as its command line or configuration file lists them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Devices {
    /// In the order of the command line, no name twice.
    pub disks: Vec<DomainDisk>,
    /// In the order of the command line.
    pub nics: Vec<DomainNic>,
}

/// A regular file or block device that a process has open.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenFile {
    /// As the kernel has it for the process.
    pub path: String,
    /// Which file it is, as stat(2) tells.
    pub identity: FileIdentity,
    /// Number of the mount.
    pub mount: u64,
    /// The device under which the kernel has it: of a block device its own, of a file that of its filesystem.
    pub device: u32,
    /// It is open with `O_DIRECT`.
    pub is_direct: bool,
    /// Direct I/O on it is iomap's.
    pub has_iomap: bool,
}

impl OpenFile {
    /// What the kernel counts a VM's I/O on it under.
    #[must_use]
    pub const fn key(&self, vm: VmSlot) -> ImageKey {
        ImageKey { vm: vm.0, device: self.device, file: self.identity.file }
    }
}

/// What an image with a format tells of itself.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ImageHeader {
    /// The image.
    pub image: FileIdentity,
    /// Octets of the disk that a guest sees.
    pub size: u64,
    /// The files on which it is based: one with what it does not have itself, and one with its data.
    pub below: Vec<FileIdentity>,
    /// Those of them that are told to be raw, and have no header: what is there, a guest has written.
    pub raw: Vec<FileIdentity>,
}

/// A file as stat(2) tells one from another: by what it is, not by its name.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct FileIdentity {
    /// Of a block device its own number, of a file that of its filesystem, as [`kernel_device`](Self::kernel_device).
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

    /// A device number as the kernel keeps it: `major << 20 | minor`.
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
    /// libosinfo's id of the guest's system; empty = not known.
    pub os_type: String,
    /// vmAdminState.
    pub admin_state: AdminState,
    /// vmOperState.
    pub oper_state: OperState,
    /// It is paused and libvirt does not say why: it may be about to tell of a guest that has panicked.
    pub is_unexplained: bool,
    /// Whether it has a process, by libvirt's word.
    pub is_active: bool,
    /// vmAutoStart.
    pub auto_start: AutoStart,
    /// vmPersistent.
    pub persistence: Persistence,
    /// vCPUs that are plugged in; `None` = not known.
    pub cpus: Option<u32>,
    /// vCPUs that it can have; `None` = not known.
    pub max_cpus: Option<u32>,
    /// Ids of the vCPUs, where the domain's description lists them.
    pub vcpu_ids: Vec<u32>,
    /// The memory columns.
    pub memory: Memory,
    /// In the order of the description.
    pub disks: Vec<DomainDisk>,
    /// In the order of the description.
    pub nics: Vec<DomainNic>,
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
    /// Other images that belong to it: those below it in its backing chain, and one that it is copied to.
    pub others: Vec<String>,
    /// There may be more, of which only the images themselves tell.
    pub chain_is_in_image: bool,
    /// How its requests are handed to the kernel.
    pub submission: Submission,
}

impl Domain {
    /// Notes whether it starts with the host, where domains of its kind can. Whether that was not known.
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
    /// Of a disk that is told to be raw, the guest writes what stands in the place of a header.
    pub(crate) fn may_have_header(&self) -> bool {
        self.chain_is_in_image || self.format != "raw"
    }
}

/// How a VMM hands its requests to the kernel, where that was said.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Submission {
    /// It was not said.
    #[default]
    Unknown,
    /// By threads that make system calls.
    Threads,
    /// io_submit(2).
    Native,
    /// io_uring(7).
    IoUring,
}

impl Submission {
    /// By the word of QEMU and libvirt.
    #[must_use]
    pub fn of(word: &str) -> Self {
        match word {
            "threads" => Self::Threads,
            "native" => Self::Native,
            "io_uring" => Self::IoUring,
            _ => Self::Unknown,
        }
    }
}

/// A network interface of a [`Domain`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct DomainNic {
    /// Link-layer address.
    pub mac: Vec<u8>,
    /// The host's interface.
    pub device: Option<String>,
    /// What the guest sees.
    pub model: String,
}

impl VmProcess {
    /// The files of disks that are told to be raw.
    pub(crate) fn raw_files(&self) -> impl Iterator<Item = FileIdentity> {
        let raw = self.devices.disks.iter().filter(|disk| !disk.may_have_header());
        let files = raw.flat_map(|disk| self.files.iter().filter(|f| f.path == disk.resource));
        files.map(|file| file.identity)
    }

    /// Takes in what the headers of its images tell.
    pub(crate) fn note_headers(&mut self, headers: &[ImageHeader]) {
        self.headers = headers.to_vec();
        for disk in &mut self.devices.disks {
            let file = self.files.iter().find(|file| file.path == disk.resource);
            let header = file.and_then(|file| headers.iter().find(|h| h.image == file.identity));
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

/// Octets in hexadecimal with colons between them; nothing where one is none.
pub(crate) fn mac(text: &str) -> Vec<u8> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .take(32)
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() == 2))
        .collect();
    octets.unwrap_or_default()
}

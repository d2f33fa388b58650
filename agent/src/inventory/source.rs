//! What the sources tell of VMs: processes, and domains of libvirt.

use super::{
    AdminState, AutoStart, DiskSize, Memory, OperState, Persistence, StorageAccess, StorageMedia,
    StorageSource, Vcpu, indexes::Identity, procfs::Devices,
};
use crate::counters::VmSlot;

/// A VM as its process shows it.
#[derive(Clone, Debug, Eq, PartialEq)]
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
    pub uuid: Option<[u8; 16]>,
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
    /// Whether it holds a VM of KVM.
    pub has_kvm: bool,
}

/// A VM as libvirt knows it, running or not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Domain {
    /// UUID in network byte order.
    pub uuid: [u8; 16],
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
    pub(super) const fn identity(&self) -> Identity {
        Identity::Process { pid: self.pid, start_ticks: self.start_ticks }
    }
}

/// Octets in hexadecimal with colons between them; nothing where one is none.
pub(super) fn mac(text: &str) -> Vec<u8> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .take(32)
        .map(|octet| u8::from_str_radix(octet, 16).ok().filter(|_| octet.len() == 2))
        .collect();
    octets.unwrap_or_default()
}

//! The immutable view of the VMs that readers see. A change creates a new view, which replaces the old one in one atomic
//! swap.

use std::sync::Arc;

use super::{SourceId, VmTable, VmUuid};
use crate::{
    counters::{DiskSize, ImageSlot, ThreadSlot, VmSlot},
    probe::Method,
    snmp::Oid,
};

/// The VMs of this host at one moment.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// The hypervisor.
    pub hypervisor: Arc<Hypervisor>,
    /// Time since boot in ns (`CLOCK_BOOTTIME`) at which a VM was last added or removed.
    pub last_change_ns: u64,
    /// The VMs.
    pub vms: VmTable,
    /// Numbers of the host's online CPUs, ascending.
    pub cpus: Arc<[u32]>,
}

/// The hypervisor as VM-MIB's vmHypervisor group describes it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hypervisor {
    /// vmHvSoftware: name without a version.
    pub software: String,
    /// vmHvVersion.
    pub version: String,
    /// vmHvObjectID; the null object identifier is served as 0.0.
    pub object_id: Oid,
}

/// vmIndex: 1 to 2^31 - 1.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmIndex(pub u32);

/// One VM.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Vm {
    /// vmIndex.
    pub index: VmIndex,
    /// vmName, in full; SNMP serves the first 255 octets.
    pub name: String,
    /// vmUUID in network byte order.
    pub uuid: Option<VmUuid>,
    /// The libvirt connection that reports it; `None` = known from its process only.
    pub source: Option<SourceId>,
    /// Number of the run of the VM. Slow values of another run are invalid.
    pub run: u32,
    /// vmOSType; empty = not known.
    pub os_type: String,
    /// vmAdminState.
    pub admin_state: AdminState,
    /// vmOperState.
    pub oper_state: OperState,
    /// vmAutoStart.
    pub auto_start: AutoStart,
    /// vmPersistent.
    pub persistence: Persistence,
    /// vmCurCpuNumber.
    pub cpu_number: u32,
    /// vmMinCpuNumber; `None` = no lower bound.
    pub min_cpu_number: Option<u32>,
    /// vmMaxCpuNumber; `None` = no limit.
    pub max_cpu_number: Option<u32>,
    /// The memory columns.
    pub memory: Memory,
    /// Time since boot in ns (`CLOCK_BOOTTIME`) at which the VM's process started; `None` = it has none.
    pub started_ns: Option<u64>,
    /// Time since boot in ns (`CLOCK_BOOTTIME`) at which the VM was started from shutdown(4), before it was saved; `None` = when
    /// its process started, or it is shut down.
    pub up_since_ns: Option<u64>,
    /// Its process, in the PID namespace of the host; `None` = it has none.
    pub pid: Option<u32>,
    /// The record of its process; `None` = its probe is not live.
    pub slot: Option<VmSlot>,
    /// The vCPUs in ascending order of [`Vcpu::id`], no id twice.
    pub vcpus: Vec<Vcpu>,
    /// The disks in ascending order of [`Disk::index`], no index twice.
    pub disks: Vec<Disk>,
    /// The network interfaces in ascending order of [`Nic::index`], no index twice.
    pub nics: Vec<Nic>,
    /// What could not be found out about it, each with the reason.
    pub gaps: Vec<String>,
}

/// The memory of a VM in bytes. The column of an unknown value is absent; a limit that does not exist is served as -1.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Memory {
    /// vmCurMem; `None` = not known.
    pub current: Option<u64>,
    /// vmMinMem; `None` = no lower bound.
    pub min: Option<u64>,
    /// vmMaxMem; `None` = no limit.
    pub max: Option<u64>,
}

/// One virtual CPU.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Vcpu {
    /// The VMM's own number of the vCPU, running or off; vmCpuIndex is one more.
    pub id: u32,
    /// The record of its thread; `None` = its probe is not live, and the columns are absent.
    pub slot: Option<ThreadSlot>,
}

/// One virtual disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Disk {
    /// vmStorageIndex: 1 to 2^31 - 1.
    pub index: u32,
    /// Name in the guest, such as `vda`.
    pub target: String,
    /// vmStorageSourceType.
    pub source: StorageSource,
    /// vmStorageSourceTypeString: the format of the image.
    pub format: String,
    /// vmStorageResourceID.
    pub resource: String,
    /// vmStorageAccess.
    pub access: StorageAccess,
    /// vmStorageMediaType.
    pub media: StorageMedia,
    /// vmStorageMediaTypeString.
    pub bus: String,
    /// The sizes that the configuration contains.
    pub size: DiskSize,
    /// Where its I/O is counted in the kernel, or why it is not.
    pub counted_by: CountedBy,
}

/// Where a disk's I/O is counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CountedBy {
    /// In the kernel: the records of its images, the method of the first image, and the reason for the method.
    Kernel(Arc<[ImageSlot]>, Method, &'static str),
    /// Not in the kernel, for this reason.
    Uncounted(String),
    /// In the kernel, once the VMM is known to have opened its image and the image has been registered.
    Pending,
}

impl CountedBy {
    /// Why the kernel counts the disk by this method, or does not count it.
    #[must_use]
    pub fn why(&self) -> &str {
        match self {
            Self::Kernel(_, _, why) => why,
            Self::Uncounted(why) => why,
            Self::Pending => "the VM is not known to have opened it yet",
        }
    }
}

/// One virtual network interface.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Nic {
    /// vmNetworkIndex: 1 to 2^31 - 1.
    pub index: u32,
    /// Name of the host's interface.
    pub device: Option<String>,
    /// vmNetworkIfIndex.
    pub if_index: IfIndex,
    /// vmNetworkParent.
    pub parent: IfIndex,
    /// vmNetworkModel.
    pub model: String,
    /// vmNetworkPhysAddress; empty = not known.
    pub phys_address: Vec<u8>,
}

/// The number of an interface in the host's interface table.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IfIndex {
    /// ifIndex, from 1.
    Is(u32),
    /// There is none, for this reason.
    Absent(&'static str),
}

/// VirtualMachineAdminState; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum AdminState {
    #[default]
    Running = 1,
    Suspended = 2,
    Paused = 3,
    Shutdown = 4,
}

/// VirtualMachineOperState; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum OperState {
    #[default]
    Unknown = 1,
    Other = 2,
    Preparing = 3,
    Running = 4,
    Suspending = 5,
    Suspended = 6,
    Resuming = 7,
    Paused = 8,
    Migrating = 9,
    Shuttingdown = 10,
    Shutdown = 11,
    Crashed = 12,
}

impl OperState {
    /// Whether a VM in this state has no process, so that it may be deleted without having ended first.
    #[must_use]
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Shutdown | Self::Suspended | Self::Crashed)
    }

    /// The state's name in the MIB.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Other => "other",
            Self::Preparing => "preparing",
            Self::Running => "running",
            Self::Suspending => "suspending",
            Self::Suspended => "suspended",
            Self::Resuming => "resuming",
            Self::Paused => "paused",
            Self::Migrating => "migrating",
            Self::Shuttingdown => "shuttingdown",
            Self::Shutdown => "shutdown",
            Self::Crashed => "crashed",
        }
    }
}

/// VirtualMachineAutoStart; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum AutoStart {
    #[default]
    Unknown = 1,
    Enabled = 2,
    Disabled = 3,
}

/// VirtualMachinePersistent; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum Persistence {
    #[default]
    Unknown = 1,
    Persistent = 2,
    Transient = 3,
}

/// VirtualMachineStorageSourceType; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum StorageSource {
    Unknown = 1,
    Other = 2,
    Block = 3,
    Raw = 4,
    Sparse = 5,
    Network = 6,
}

/// VirtualMachineStorageAccess; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum StorageAccess {
    Unknown = 1,
    ReadWrite = 2,
    ReadOnly = 3,
}

/// IANAStorageMediaType; the numbers are the MIB's.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(i32)]
#[expect(missing_docs, reason = "the names are the MIB's")]
pub enum StorageMedia {
    Other = 1,
    Unknown = 2,
    HardDisk = 3,
    OpticalDisk = 4,
    FloppyDisk = 5,
}

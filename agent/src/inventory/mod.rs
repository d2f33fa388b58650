//! The VMs of this host: who they are and what they have. Changes by events, never by a request.
//!
//! [`Inventory`] is what readers see, and [`Registry`] where they find the present one. The [`sources`](crate::sources)
//! know VMs. [`Assembly`] makes one set of VMs out of both.

mod assembly;
mod change;
mod compose;
mod facts;
mod indexes;
mod registry;
pub(crate) mod retry;
mod view;
mod vm_uuid;

pub use assembly::Assembly;
pub use change::{Change, ChangeEvent};
pub(crate) use facts::mac;
pub use facts::{
    Devices, Domain, DomainDisk, DomainNic, FileIdentity, ImageHeader, OpenFile, Submission,
    VmProcess,
};
pub use registry::Registry;
pub use view::{
    AdminState, AutoStart, CountedBy, Disk, DiskSize, Hypervisor, Inventory, Memory, Nic,
    OperState, Persistence, StorageAccess, StorageMedia, StorageSource, Vcpu, Vm, VmIndex,
};
pub use vm_uuid::VmUuid;

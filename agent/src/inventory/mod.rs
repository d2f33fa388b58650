//! The VMs of this host: who they are and what they have. Changes by events, never by a request.
//!
//! [`Inventory`] is what readers see, and [`Registry`] where they find the present one. Two sources know VMs:
//! [`procfs`] finds those that show themselves in the kernel, and [`libvirt`] the domains of libvirt, running or
//! not. [`Assembly`] makes one set of VMs out of both.

mod assembly;
mod change;
mod compose;
mod disk_files;
mod images;
mod indexes;
mod interfaces;
#[cfg(feature = "libvirt")]
pub mod libvirt;
mod methods;
mod model;
pub mod procfs;
mod questions;
mod registry;
mod source;

pub use assembly::Assembly;
pub use change::{Change, ChangeEvent};
pub use images::{CountedBy, SharedHooks};
pub use model::{
    AdminState, AutoStart, Disk, DiskSize, Hypervisor, Inventory, Memory, Nic, OperState,
    Persistence, StorageAccess, StorageMedia, StorageSource, Vcpu, Vm, VmIndex,
};
pub use registry::Registry;
use source::mac;
pub use source::{
    Domain, DomainDisk, DomainNic, FileIdentity, ImageHeader, OpenFile, Submission, VmProcess,
};

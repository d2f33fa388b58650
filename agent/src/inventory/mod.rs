//! The VMs of this host: who they are and what they have. Changes by facts, never by a request.
//!
//! [`Core`] takes in what the [`sources`](crate::sources) report and makes one set of VMs of it. [`Inventory`] is the view
//! that readers see, and [`Registry`] where they find the present one.
//!
//! Reading order: [`facts`] and [`messages`] (what goes in and out), [`state`] (one VM), [`core`], [`domains`]
//! (facts of libvirt), [`processes`], [`pairing`] (which process is which domain's), [`namesakes`] (VMs with one UUID),
//! [`rows`], [`nics`], [`table`].

mod change;
mod core;
mod domains;
mod facts;
mod indexes;
mod messages;
mod namesakes;
mod nics;
mod pairing;
mod paths;
mod processes;
mod registry;
pub(crate) mod retry;
mod rows;
mod state;
mod table;
mod view;
mod vm_uuid;

pub use self::core::{Connection, Core, CoreConfig};
pub use crate::counters::DiskSize;
pub use change::{Change, ChangeEvent};
pub(crate) use facts::mac;
pub use facts::{
    Devices, Domain, DomainDisk, DomainNic, DomainProcess, FileIdentity, FoundState, ImageHeader,
    Machine, OpenFile, Submission, Taps, UnnamedTap, VcpuState, VmProcess,
};
pub use indexes::{BadIndex, SavedIndexes};
pub use messages::{
    CountingReport, DiskQuery, DomainFact, Fact, Fence, NicNumbers, Now, Output, QueriedDisk,
    SourceId, VmPlan,
};
pub use paths::PathAnswer;
pub use registry::Registry;
pub use table::VmTable;
pub use view::{
    AdminState, AutoStart, CountedBy, Disk, Hypervisor, IfIndex, Inventory, Memory, Nic, OperState,
    Persistence, StorageAccess, StorageMedia, StorageSource, Vcpu, Vm, VmIndex,
};
pub use vm_uuid::VmUuid;

//! The VMs of this host: who they are and what they have. Changes by events, never by a request.
//!
//! [`Inventory`] is what readers see, and [`Registry`] where they find the present one. [`procfs`] finds the VMs
//! that show themselves in the kernel.

mod indexes;
mod model;
pub mod procfs;
mod registry;

pub use model::{
    AdminState, AutoStart, Hypervisor, Inventory, Memory, Nic, OperState, Persistence, Vcpu, Vm,
    VmIndex,
};
pub use registry::Registry;

//! The VMs of this host: who they are and what they have. Changes by events, never by a request.

mod model;

pub use model::{
    AdminState, AutoStart, Hypervisor, Inventory, Memory, Nic, OperState, Persistence, Vcpu, Vm,
    VmIndex,
};

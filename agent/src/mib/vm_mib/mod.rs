//! VM-MIB (RFC 7666) as tables.
//!
//! One file for each table and group of scalars: [`hypervisor`], [`vm`], [`vcpu`], [`affinity`], [`storage`],
//! [`network`], [`notification`]. An entry there is all that an object needs. [`rows`] finds the rows,
//! [`convention`] has the types, [`conformance`] groups and compliance statements.

pub mod affinity;
pub mod capabilities;
pub mod conformance;
pub mod convention;
pub mod hypervisor;
pub mod network;
mod nodes;
pub mod notification;
pub mod rows;
pub mod storage;
pub mod vcpu;
pub mod vm;

use super::{
    context::Snapshot,
    smi::{Identity, Module},
};
use crate::snmp::Oid;

pub use capabilities::CAPABILITIES;

/// vmMIB: { mib-2 236 }.
pub const ROOT: Oid = Oid::of(&[1, 3, 6, 1, 2, 1, 236]);

/// The module.
pub static MODULE: Module<Snapshot> = Module {
    root: &nodes::VM_MIB,
    identity: Identity {
        organization: "IETF Operations and Management Area Working Group",
        contact: "RFC 7666 names the authors of the module and the mailing list of the working \
            group.",
        description: "Virtual machines and the hypervisor that runs them.\n\n\
            This is the module of RFC 7666 as kvmeter serves it. Names, numbers, types, access and \
            conformance are those of the RFC; the descriptions are kvmeter's own, and where they \
            differ in meaning the RFC is right.",
        revisions: &[("201510120000Z", "Published as RFC 7666.")],
    },
    capabilities: "The MIB module of RFC 7666 for virtual machines on KVM",
    conventions: convention::VM_MIB_CONVENTIONS,
    branches: &[
        &hypervisor::HYPERVISOR,
        &hypervisor::TOTALS,
        &vm::TABLE,
        &vcpu::TABLE,
        &affinity::TABLE,
        &storage::TABLE,
        &network::TABLE,
        &notification::SWITCHES,
        &notification::BULK_VARIABLES,
    ],
    notifications: &[&notification::PER_VM, &notification::BULK],
    compliances: conformance::COMPLIANCES,
    groups: conformance::GROUPS,
};

//! VM-MIB (RFC 7666): the schema, and get and get-next over it. Does no I/O.
//!
//! Reading order: [`schema`] says what an object is and joins the tables, one file each ([`hypervisor`],
//! [`vm`], [`vcpu`], [`affinity`], [`storage`], [`network`], [`notification`]); a line there is all that an
//! object needs. [`convert`] turns the host's units into SNMP's, `rows` finds rows, [`View`] answers
//! requests, [`text()`] prints the module.

pub mod affinity;
pub mod conformance;
pub mod convention;
pub mod convert;
pub mod hypervisor;
pub mod network;
pub mod notification;
mod rows;
pub mod schema;
pub mod storage;
mod text;
pub mod vcpu;
mod view;
pub mod vm;

pub use notification::Switches;
pub use schema::VM_MIB;
pub use text::text;
pub use view::{Snapshot, View};

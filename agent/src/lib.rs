//! kvmeter: VM-MIB (RFC 7666) for KVM hosts, answered from memory that eBPF programs keep.
//!
//! The rooms, in the order in which the data flows; read them in that order:
//!
//! 1. [`probe`] loads, attaches, pins and adopts the BPF programs; it knows kernels, not VMs.
//! 2. [`counters`] turns the records that the programs write into numbers.
//! 3. [`inventory`] knows which VMs there are, and swaps in a new immutable view at each change.
//! 4. [`mib`] is the schema of VM-MIB and answers get and get-next over the inventory and the counters.
//! 5. [`agentx`] speaks RFC 2741 with the SNMP master; it knows [`agentx::Objects`], not the MIB.
//!
//! [`notify`] makes notifications of changes in 3, and 5 sends them. [`run`](mod@run) puts them together. [`snmp`] holds the types
//! that 4 and 5 share, [`histogram`] the quantiles that 2 and 5 give out; both import nothing of the rooms.

pub mod agentx;
pub mod check;
pub mod cli;
pub mod config;
pub mod counters;
pub mod counting;
pub mod histogram;
pub mod inventory;
pub mod mib;
pub mod notify;
pub mod privileges;
pub mod probe;
pub mod run;
pub mod snmp;
pub mod sources;
pub mod status;
mod unix_socket;
pub mod values;
pub mod worker;

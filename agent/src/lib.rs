//! kvmeter: VM-MIB (RFC 7666) for KVM hosts, answered from memory that eBPF programs keep.
//!
//! The rooms, in the order in which the data flows; read them in that order:
//!
//! 1. [`probe`] loads, attaches, pins and adopts the BPF programs; it knows kernels, not VMs.
//! 2. [`counters`] turns the records that the programs write into numbers.
//! 3. [`sources`] report facts about VMs: processes, and domains of libvirt.
//! 4. [`inventory`] makes one set of VMs of the facts, and a new immutable view at each change.
//! 5. [`counting`] has the VMs' threads and disks counted, as 4 plans.
//! 6. [`values`] are the numbers of a VM: what each is, and why it is absent.
//! 7. [`mib`] answers get, get-next and SET over tables of modules, of which VM-MIB is one.
//! 8. [`agentx`] speaks RFC 2741 with the SNMP master; it knows [`agentx::Objects`], not the MIB.
//!
//! [`notify`] makes notifications of changes in 4, and 8 sends them. [`run`](mod@run) puts the rooms together. [`snmp`] holds the
//! types that 7 and 8 share, [`histogram`] the quantiles that 2 and 8 give out; both import nothing of the rooms. [`worker`] is
//! what the threads of 3 and 5 share.
//!
//! `docs/architecture.md` has the invariants, the threads, and the way of a number and of an event.

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

//! kvmeter: VM-MIB (RFC 7666) for KVM hosts, answered from memory that eBPF programs write.
//!
//! The rooms, in reading order:
//!
//! 1. [`probe`] loads, attaches, pins and adopts the BPF programs. It knows kernels, not VMs.
//! 2. [`counters`] turns the records that the programs write into numbers.
//! 3. [`counting`] assigns records to VMs, threads and images, and chooses the hooks to attach.
//! 4. [`worker`] contains what every thread that reports facts needs.
//! 5. [`sources`] report facts about VMs: processes, and domains of libvirt.
//! 6. [`inventory`] merges the facts into one immutable view, replaced at each change, and plans the counting.
//! 7. [`values`] returns each number of a VM, or why it is absent.
//! 8. [`mib`] answers get, get-next and SET over the tables of its modules, VM-MIB among them.
//! 9. [`agentx`] speaks RFC 2741 with the SNMP master. It knows [`agentx::Objects`], not the MIB.
//! 10. [`notify`] turns changes into notifications, which `agentx` sends.
//! 11. [`status`] serves the report of `kvmeter status`.
//! 12. [`check`] examines the host before the first start.
//! 13. [`run`](mod@run) connects the rooms by threads and channels.
//!
//! [`account`] (whose share something is), [`exit`](mod@exit) (the end of the process), [`snmp`] (types), [`histogram`] (quantiles) and [`rate`]
//! (bounded rates) are shared by several rooms and import none.
//!
//! `docs/architecture.md` has the invariants, the threads, and the way of a number and of an event.

pub mod account;
pub mod agentx;
pub mod check;
pub mod cli;
pub mod config;
pub mod counters;
pub mod counting;
pub mod exit;
pub mod heartbeat;
pub mod histogram;
pub mod inventory;
pub mod mib;
pub mod notify;
pub mod privileges;
pub mod probe;
pub mod rate;
pub mod run;
pub mod snmp;
pub mod sources;
pub mod status;
mod unix_socket;
pub mod values;
pub mod worker;

//! Tests of the agent on a real machine: BPF programs, guests, daemons and SNMP tools. They run one after the other,
//! because their hooks are global to the machine and many of them measure time.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
extern crate xtask_test;

#[macro_use]
mod lab;

#[cfg(feature = "libvirt")]
mod adversary;
mod agentx_snmpd;
mod backing_chains;
mod counters;
mod disk_paths;
mod event_ring;
mod hanging_reads;
mod identity;
mod idle;
mod images;
mod interfaces;
mod inventory;
mod kernels;
#[cfg(feature = "libvirt")]
mod libvirt_away;
#[cfg(feature = "libvirt")]
mod libvirt_connections;
#[cfg(feature = "libvirt")]
mod libvirt_daemon;
#[cfg(feature = "libvirt")]
mod libvirt_disks;
#[cfg(feature = "libvirt")]
mod libvirt_domains;
#[cfg(feature = "libvirt")]
mod libvirt_notifications;
mod limits;
mod live_counters;
mod manager;
mod mib_text;
#[cfg(feature = "libvirt")]
mod notification_storm;
mod notifications;
#[path = "../../fuzz/src/objects.rs"]
#[expect(unreachable_pub, reason = "shared with the fuzzer's crate")]
mod objects;
mod pauses;
mod preflight;
mod process_time;
mod proxmox;
mod qemu_options;
mod replug;
mod requests;
#[path = "../second_mib/mod.rs"]
mod second_mib;
mod service;
mod service_check;
mod shortage;
mod submission;
mod thread_ids;

fn main() -> std::process::ExitCode {
    xtask::harness::run()
}

//! Which tests run at the same time.
//!
//! What needs nothing of the machine runs first. What measures time runs alone. Then, one after the other, what counts all
//! VMs of the host, and after that, beside each other, tests that mostly wait for other programs: each has its own agent,
//! master and libvirt, and looks at its own VMs only. Beside both, and only on CPUs that they leave idle, runs what takes all
//! that it gets.

use super::{
    binaries::Binary,
    runner::{Harness, Job},
};

/// Programs with tests that need something of the machine, by package and target.
const MACHINE: &[&str] = &["agent/machine", "agent/privileges", "xtask/lab", "xtask/tiny_guest"];

/// Modules of tests that do not measure time, but look at all VMs or at all programs of the host: one at a time.
const ONE_AT_A_TIME: &[&str] = &[
    "adversary",
    "disk_paths",
    "hanging_reads",
    "identity",
    "idle",
    "interfaces",
    "inventory",
    "libvirt_away",
    "libvirt_connections",
    "limits",
    "manager",
    "notification_storm",
    "notifications",
    "pauses",
    "proxmox",
    "qemu_options",
    "service",
    "shortage",
    "submission",
    "thread_ids",
];

/// Modules of tests that mostly wait: each line beside the others.
const WAITING: [&[&str]; 4] = [
    &["libvirt_disks", "agentx_snmpd"],
    &["libvirt_disks::guest", "libvirt_domains", "backing_chains"],
    &["libvirt_disks::changes", "libvirt_daemon"],
    &["libvirt_notifications", "mib_text", "preflight"],
];

/// Modules of tests with guests that take all CPUs that they get, use nothing else of the host, and are no VMs to an agent.
const ON_IDLE_CPUS: &[&str] = &["kernels"];

/// Jobs one after the other.
pub(crate) type Lane = Vec<Job>;

/// The lanes: `pure`, then `alone`, then `idle` beside `one_at_a_time` and, after that, all of `waiting`.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    pub(crate) pure: Lane,
    pub(crate) alone: Lane,
    pub(crate) one_at_a_time: Lane,
    pub(crate) waiting: [Lane; WAITING.len()],
    pub(crate) idle: Lane,
}

impl Lanes {
    pub(crate) fn of(binaries: Vec<Binary>) -> anyhow::Result<Self> {
        let mut lanes = Self::default();
        for binary in binaries {
            if !MACHINE.contains(&binary.name.as_str()) {
                lanes.pure.push(Job::new(binary, Harness::Compiler));
                continue;
            }
            let modules = binary.modules()?;
            if modules.is_empty() {
                lanes.alone.push(Job::new(binary, Harness::Machine(None)));
                continue;
            }
            // Each module in a process of its own: what one leaves behind in its process is not the next one's.
            for module in modules {
                let lane = lanes.of_module(&module);
                lane.push(Job::new(binary.clone(), Harness::Machine(Some(module))));
            }
        }
        lanes.idle.iter_mut().for_each(|job| job.on_idle_cpus = true);
        Ok(lanes)
    }

    fn of_module(&mut self, module: &str) -> &mut Lane {
        if ON_IDLE_CPUS.contains(&module) {
            return &mut self.idle;
        }
        if ONE_AT_A_TIME.contains(&module) {
            return &mut self.one_at_a_time;
        }
        let beside = WAITING.iter().position(|modules| modules.contains(&module));
        beside.map_or(&mut self.alone, |number| &mut self.waiting[number])
    }
}

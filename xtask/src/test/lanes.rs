//! Which tests run at the same time.
//!
//! What needs nothing of the machine runs first. What measures time, or counts all VMs of the host, runs alone. Tests that
//! mostly wait for other programs run beside each other: each has its own agent, master and libvirt, and looks at its own VMs
//! only. Beside them, and only on CPUs that they leave idle, runs what takes all that it gets.

use super::{
    binaries::Binary,
    runner::{Harness, Job},
};

/// Programs with tests that need something of the machine, by package and target.
const MACHINE: &[&str] = &["agent/machine", "agent/privileges", "xtask/lab", "xtask/tiny_guest"];

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

/// The lanes: `pure`, then `alone`, then the others at the same time.
#[derive(Debug, Default)]
pub(crate) struct Lanes {
    pub(crate) pure: Lane,
    pub(crate) alone: Lane,
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
        let beside = WAITING.iter().position(|modules| modules.contains(&module));
        beside.map_or(&mut self.alone, |number| &mut self.waiting[number])
    }
}

//! Whether a process runs a VM, or only has what a VM has: a QEMU that is asked for its version, waits for its daemon, or is the
//! copy of a VM's process that is about to execute a script.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{options::name_of, process};
use crate::inventory::VmProcess;

/// Age in ns from which a QEMU without KVM is a VM though none of its threads has the name of a vCPU. A question takes less.
pub(super) const GROWN: u64 = 500_000_000;

/// Options of QEMU with which it prints something and ends.
const QUESTIONS: [&str; 4] = ["version", "help", "h", "?"];

/// Options whose value may be the question what there is to choose from. `-name help` is a name.
const CHOICES: [&str; 19] = [
    "machine", "M", "cpu", "accel", "device", "object", "netdev", "nic", "net", "chardev", "drive",
    "audiodev", "audio", "soundhw", "display", "vga", "tpmdev", "d", "trace",
];

/// What the arguments of a QEMU say of whether it will run a guest itself.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Intent {
    /// It prints something and ends.
    pub(super) only_asks: bool,
    /// A child of it runs the guest (`-daemonize`). The child has the same arguments.
    pub(super) leaves_it_to_a_child: bool,
}

impl Intent {
    /// Reads the arguments, without the program's name.
    pub(super) fn of(arguments: &[&str]) -> Self {
        let mut arguments = arguments.iter().copied().peekable();
        let mut found = Self::default();
        while let Some(argument) = arguments.next() {
            let Some(option) = name_of(argument) else { continue };
            found.only_asks |= QUESTIONS.contains(&option);
            found.leaves_it_to_a_child |= option == "daemonize";
            if let Some(value) = arguments.peek().filter(|_| CHOICES.contains(&option)) {
                found.only_asks |= value.split(',').any(|field| matches!(field, "help" | "?"));
            }
            // A value that looks like an option is none.
            if arguments.peek().is_some_and(|value| !value.starts_with('-')) {
                arguments.next();
            }
        }
        found
    }
}

/// Whether a QEMU without KVM runs a guest. `has_vcpu`: a thread has the name of a vCPU; `age` in ns.
pub(super) const fn runs_guest(has_vcpu: bool, intent: Intent, threads: usize, age: u64) -> bool {
    // The process that waits for its daemon has no other thread.
    let waits = intent.leaves_it_to_a_child && threads < 2;
    has_vcpu || (age >= GROWN && !intent.only_asks && !waits)
}

/// Copies of VMs' processes that are remembered before those that have ended are looked for.
const MAX_COPIES: usize = 64;

/// The copies of VMs' processes, made by fork(2), by process id, with their start: each has what the VM has, and runs nothing of
/// it.
#[derive(Debug, Default)]
pub(super) struct Copies(HashMap<u32, u64>);

impl Copies {
    /// Whether a process that is not known as a VM is a copy. `is_own` = it runs a VM of its own, if that is known. It stays one when its parent has ended.
    pub(super) fn has(
        &mut self,
        process: &VmProcess,
        is_own: Option<bool>,
        parent_is_vm: bool,
    ) -> bool {
        let (pid, start) = (process.pid, process.start_ticks);
        if let Some(is_own) = is_own {
            self.0.remove(&pid);
            return !is_own;
        }
        if !parent_is_vm || self.0.get(&pid) == Some(&start) {
            return self.0.get(&pid) == Some(&start);
        }
        if self.0.len() >= MAX_COPIES {
            self.0.retain(|pid, _| process::is_there(*pid));
        }
        self.0.insert(pid, start);
        true
    }
}

/// For how long a daemon of libvirt may have a VM of KVM only to ask KVM something: it takes milliseconds, and the agent may be
/// late. After that it is a VM, because any user can run another program within the daemon's, and with its name.
const PROBE: Duration = Duration::from_secs(2);

/// Daemons that are remembered before those that have ended are looked for.
const MAX_PROBES: usize = 64;

/// Processes of libvirt's daemons that have a VM of KVM in which no vCPU has run, by process id, with their start, and when the VM was
/// first seen.
#[derive(Debug, Default)]
pub(super) struct Probes(HashMap<u32, (u64, Instant)>);

impl Probes {
    /// Whether the VM of this daemon may still be there only to ask KVM something.
    pub(super) fn has(&mut self, pid: u32, start_ticks: u64, now: Instant) -> bool {
        if self.0.len() >= MAX_PROBES && !self.0.contains_key(&pid) {
            self.0.retain(|pid, _| process::is_there(*pid));
        }
        let seen = self.0.entry(pid).or_insert((start_ticks, now));
        if seen.0 != start_ticks {
            *seen = (start_ticks, now);
        }
        now < seen.1 + PROBE
    }

    /// The process has no VM.
    pub(super) fn forget(&mut self, pid: u32) {
        self.0.remove(&pid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn intent(line: &str) -> Intent {
        Intent::of(&line.split(' ').skip(1).chain([""]).collect::<Vec<_>>())
    }

    #[test]
    fn a_qemu_that_only_prints_is_no_vm_at_any_age() {
        for line in [
            "kvm --version",
            "qemu-system-x86_64 -version",
            "qemu-system-x86_64 -h",
            "qemu-system-x86_64 -machine help",
            "qemu-system-x86_64 -M ?",
            "qemu-system-x86_64 -m 64 -device virtio-net-pci,help",
            "qemu-system-x86_64 -cpu ?",
        ] {
            assert!(intent(line).only_asks, "{line}");
            assert!(!runs_guest(false, intent(line), 4, u64::MAX), "{line}");
        }
        for line in [
            "qemu-system-x86_64 -name help -m 64",
            "qemu-system-x86_64 -name ? -uuid x",
            "qemu-system-x86_64 -drive file=/help.img",
            "qemu-system-x86_64 -append version",
            "qemu-system-x86_64",
            "",
        ] {
            assert!(!intent(line).only_asks, "{line}");
            assert!(
                runs_guest(false, intent(line), 1, GROWN)
                    && !runs_guest(false, intent(line), 1, GROWN - 1)
            );
            assert!(runs_guest(true, intent(line), 3, 0), "at once, with a vCPU");
        }
    }

    #[test]
    fn a_daemon_that_keeps_its_vm_has_not_only_asked() {
        let (mut probes, now) = (Probes::default(), Instant::now());
        assert!(probes.has(7, 100, now) && probes.has(7, 100, now + PROBE / 2));
        assert!(!probes.has(7, 100, now + PROBE));
        assert!(probes.has(7, 101, now + PROBE), "another process");
        probes.forget(7);
        let later = now + PROBE * 100;
        assert!(probes.has(7, 101, later) && !probes.has(7, 101, later + PROBE));
    }

    #[test]
    fn who_waits_for_its_daemon_is_no_vm() {
        let daemon = intent("qemu-system-x86_64 -accel tcg -daemonize");
        assert!(!runs_guest(false, daemon, 1, u64::MAX));
        assert!(runs_guest(false, daemon, 4, GROWN));
    }
}

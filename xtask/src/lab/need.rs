//! Requirements of tests, and how a test reports a missing one.

use std::{env, fs, path::Path};

use super::{DebianKernel, find, libvirt_program};

/// Reports the test as ignored if a requirement is missing, or fails it if `KVMETER_REQUIRE`, a comma-separated list,
/// names the requirement.
#[macro_export]
macro_rules! require {
    ($($what:expr),+) => {
        $(if let Err(reason) = $crate::lab::need($what) {
            $crate::harness::ignore(reason);
        })+
    };
}

/// Checks whether the machine has `what`.
///
/// # Errors
///
/// The reason why it is missing.
///
/// # Panics
///
/// If `KVMETER_REQUIRE` names it.
pub fn need(what: &str) -> Result<(), String> {
    missing(what).map_or(Ok(()), |reason| lacks(what, reason))
}

/// Reports that the machine does not have `what`.
///
/// # Errors
///
/// The reason why it is missing.
///
/// # Panics
///
/// If `KVMETER_REQUIRE` names it.
pub fn lacks(what: &str, reason: &str) -> Result<(), String> {
    let required = env::var("KVMETER_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == what), "{what} is required here, but {reason}");
    Err(reason.to_owned())
}

/// Why the machine does not have `what`; `None` = it has it.
#[must_use]
pub fn missing(what: &str) -> Option<&'static str> {
    match what {
        "root" | "ebpf" if !rustix::process::geteuid().is_root() => Some("this is not root"),
        "ebpf" if !Path::new("/sys/kernel/btf/vmlinux").exists() => Some("the kernel has no BTF"),
        "ebpf" if !is_bpffs() => Some("/sys/fs/bpf is not mounted"),
        "kvm" if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() => {
            Some("/dev/kvm cannot be opened")
        }
        "snmpd" if !is_in_path("snmpd") || !is_in_path("snmpget") => {
            Some("snmpd or snmpget is not installed")
        }
        "qemu" if !is_in_path("qemu-system-x86_64") => Some("qemu-system-x86_64 is not installed"),
        "libvirt" if !is_in_path("virsh") || libvirt_program().is_none() => {
            Some("virsh, or a libvirtd or virtqemud, is not installed")
        }
        "snmptrapd" if !is_in_path("snmptrapd") => Some("snmptrapd is not installed"),
        "strace" if !is_in_path("strace") => Some("strace is not installed"),
        "fio" if !is_in_path("fio") => Some("fio is not installed"),
        "smilint" if !is_in_path("smilint") => Some("smilint is not installed"),
        "fuse" if fs::File::open("/dev/fuse").is_err() => Some("/dev/fuse cannot be opened"),
        "loop" if !Path::new("/dev/loop-control").exists() => Some("there are no loop devices"),
        "kernels" if DebianKernel::all().is_empty() => Some("there are no kernels for guests"),
        "pysmi" if !is_in_path("mibdump") => Some("mibdump of pysmi is not installed"),
        _ => None,
    }
}

fn is_bpffs() -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(" /sys/fs/bpf bpf "))
}

fn is_in_path(program: &str) -> bool {
    find(program).is_some()
}

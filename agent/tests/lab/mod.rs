//! What the tests need of the machine, and how they say that it is not there.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Skips the test with a printed reason, or fails it where the machine is known to have what is missing:
/// `KVMETER_REQUIRE` names those things with commas between them.
#[macro_export]
macro_rules! require {
    ($($need:expr),+) => {
        $(if let Err(reason) = $crate::lab::need($need) {
            eprintln!("skipped: {reason}");
            return;
        })+
    };
}

/// Whether the machine has `what`; else why not.
pub(crate) fn need(what: &str) -> Result<(), String> {
    let missing = match what {
        "ebpf" if !rustix::process::geteuid().is_root() => Some("not root"),
        "ebpf" if !Path::new("/sys/kernel/btf/vmlinux").exists() => Some("the kernel has no BTF"),
        "ebpf" if kvmeter::probe::is_stub() => Some("built without the BPF programs"),
        "ebpf" if !is_bpffs() => Some("/sys/fs/bpf is not mounted"),
        "kvm" if fs::File::options().read(true).write(true).open("/dev/kvm").is_err() => {
            Some("/dev/kvm cannot be opened")
        }
        "snmpd" if !in_path("snmpd") || !in_path("snmpget") => {
            Some("snmpd or snmpget is not installed")
        }
        "qemu" if !in_path("qemu-system-x86_64") => Some("qemu-system-x86_64 is not installed"),
        "smilint" if !in_path("smilint") => Some("smilint is not installed"),
        _ => None,
    };
    let Some(reason) = missing else { return Ok(()) };
    let required = env::var("KVMETER_REQUIRE").unwrap_or_default();
    assert!(!required.split(',').any(|name| name == what), "{what} is required here, but {reason}");
    Err(reason.to_owned())
}

fn is_bpffs() -> bool {
    fs::read_to_string("/proc/self/mounts").is_ok_and(|mounts| mounts.contains(" /sys/fs/bpf bpf "))
}

fn in_path(program: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| {
        env::split_paths(&path)
            .chain([PathBuf::from("/usr/sbin")])
            .any(|dir| dir.join(program).exists())
    })
}

/// A pin directory of its own, removed with all that it holds when this is dropped.
pub(crate) struct PinDir(PathBuf);

impl PinDir {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self(PathBuf::from(format!("/sys/fs/bpf/kvmeter-test-{}-{number}", process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PinDir {
    fn drop(&mut self) {
        let removed = kvmeter::probe::Probe::detach(&self.0);
        assert!(removed.is_ok() || std::thread::panicking(), "the test's pins remain: {removed:?}");
    }
}

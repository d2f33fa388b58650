//! The requirements of the tests, and private pins.

pub(crate) mod counted;
pub(crate) mod io_limit;
#[cfg(feature = "libvirt")]
pub(crate) mod libvirt;
pub(crate) mod module;
pub(crate) mod network;
pub(crate) mod sandbox;
pub(crate) mod stage;
pub(crate) mod strace;
pub(crate) mod traps;

use std::{
    env,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Like `xtask::require`; BPF programs that were not built count as missing.
#[macro_export]
macro_rules! require {
    ($($what:expr),+) => {
        $(if let Err(reason) = $crate::lab::need($what) {
            xtask::harness::ignore(reason);
        })+
    };
}

pub(crate) fn need(what: &str) -> Result<(), String> {
    xtask::lab::need(what)?;
    if what == "ebpf" && kvmeter::probe::is_stub() {
        return xtask::lab::lacks(what, "this kvmeter was built without its BPF programs");
    }
    Ok(())
}

/// How often a test does what it repeats: `emulated` times where `KVMETER_EMULATED` is set, on a machine without KVM that
/// is some thirty times slower.
pub(crate) fn rounds(usual: u32, emulated: u32) -> u32 {
    if env::var_os("KVMETER_EMULATED").is_some() { emulated } else { usual }
}

/// A private pin directory, removed with its contents when dropped.
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

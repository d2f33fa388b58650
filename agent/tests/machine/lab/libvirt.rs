//! A libvirtd and an agent connected to it, both private to one test.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::Command,
    time::{Duration, Instant},
};

use kvmeter::inventory::OperState;
use tempfile::TempDir;
use xtask::lab::{Libvirtd, PATIENCE, missing, wait_until};

use super::stage::Stage;

const VM_OPER_STATE: &[u32] = &[4, 1, 6];

/// The fields are dropped in this order: the agent before the daemon.
pub(crate) struct Host {
    pub(crate) stage: Stage,
    pub(crate) libvirtd: Libvirtd,
    pub(crate) images: TempDir,
    _dir: TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::made(false)
    }

    /// The same, with an agent that sees the daemon's files at the paths of the host's own daemon.
    pub(crate) fn with_its_files() -> Self {
        Self::made(true)
    }

    fn made(inside: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let libvirtd = Libvirtd::start(dir.path()).unwrap();
        let more = "block_statistics_s = 1\n";
        let stage = Stage::made(&libvirtd.uri_read_only(), "", more, |agent| {
            if inside {
                let program = dir.path().join("kvmeter");
                let pid = libvirtd.child().unwrap().pid();
                let script = format!(
                    "#!/bin/sh\nexec nsenter --mount=/proc/{pid}/ns/mnt {} \"$@\"\n",
                    env!("CARGO_BIN_EXE_kvmeter")
                );
                fs::write(&program, script).unwrap();
                fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
                agent.use_program(program);
            }
        });
        let host = Self { stage, libvirtd, images: tempfile::tempdir().unwrap(), _dir: dir };
        host.wait_for_source("live", |source| source["state"] == "live");
        host
    }

    pub(crate) fn source(&self) -> serde_json::Value {
        self.stage.status()["sources"][1].clone()
    }

    pub(crate) fn wait_for_source(
        &self,
        what: &str,
        is_so: impl Fn(&serde_json::Value) -> bool,
    ) -> Duration {
        let start = Instant::now();
        wait_until(PATIENCE, what, || is_so(&self.source()).then_some(())).unwrap_or_else(
            |error| panic!("{error}\n{}\n{}", self.source(), self.stage.agent.log()),
        );
        start.elapsed()
    }

    pub(crate) fn image(&self, name: &str, options: &[&str], size: &str) -> String {
        let path = self.images.path().join(name).to_str().unwrap().to_owned();
        let made = Command::new("qemu-img")
            .args(["create", "-q"])
            .args(options)
            .args([&path, size])
            .status()
            .unwrap();
        assert!(made.success());
        path
    }

    pub(crate) fn wait_for_state(&mut self, index: u32, state: OperState) {
        let state = u64::from((state as i32).unsigned_abs());
        self.stage.wait_for("the state", VM_OPER_STATE, &[index], |seen| seen == Some(state));
    }
}

/// The UUID of a domain. It ends in the number; domains of another program of tests have other UUIDs.
pub(crate) fn uuid(number: u32) -> String {
    format!("{:08x}-0000-4000-8000-{number:012}", std::process::id())
}

/// A domain of this name with these devices; KVM where the machine has it.
pub(crate) fn domain(name: &str, number: u32, more: &str, devices: &str) -> String {
    let kind = if missing("kvm").is_none() { "kvm" } else { "qemu" };
    format!(
        "<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid>\
         <memory unit='MiB'>64</memory>{more}<os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>",
        uuid = uuid(number)
    )
}

pub(crate) fn disk(
    kind: &str,
    device: &str,
    format: &str,
    source: &str,
    target: &str,
    more: &str,
) -> String {
    format!(
        "<disk type='{kind}' device='{device}'><driver name='qemu' type='{format}'/>{source}\
         <target dev='{target}'/>{more}</disk>"
    )
}

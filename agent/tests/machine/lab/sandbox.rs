//! An agent that sees less of the host than a VM's process, and a QEMU that sees something else: what both are started with, and
//! how their disks are compared.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use tempfile::TempDir;
use xtask::lab::{Agent, Child, PATIENCE, Qmp, missing, wait_until};

use super::stage::{Stage, index};

const SIZE: u64 = 4 << 20;
const READ_OCTETS: &[u32] = &[7, 1, 15];
pub(crate) const DEFINED_SIZE: &[u32] = &[7, 1, 11];

/// Lines of a shell in a mount namespace of its own: a `/dev` with what systemd's `PrivateDevices=yes` leaves.
pub(crate) const PRIVATE_DEV: &str = "mount -t tmpfs -o mode=755 tmpfs /dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do
  mknod -m 666 /dev/${node%:*} c 1 ${node#*:}
done";

/// A user and group that nothing else has.
pub(crate) const USER: u32 = 64_123;

const UNIT: &str = include_str!("../../../etc/kvmeter.service");

/// The capabilities that the unit grants, as setpriv(1) names them.
fn granted() -> String {
    let line = UNIT.lines().find_map(|line| line.strip_prefix("AmbientCapabilities="));
    let names = line.unwrap().split(' ').map(|name| name.trim_start_matches("CAP_").to_lowercase());
    names.map(|name| format!(",+{name}")).collect()
}

/// Arguments of setpriv(1) for the unit's user, with these capabilities.
pub(crate) fn as_user(capabilities: &str) -> String {
    format!(
        "setpriv --reuid {USER} --regid {USER} --clear-groups --no-new-privs \
         --inh-caps=-all{capabilities} --ambient-caps=-all{capabilities} --bounding-set=-all{capabilities}"
    )
}

/// An agent that is started as the unit does: `kvmeter prepare` as root, and the agent in its sandbox.
pub(crate) fn unit_stage(dir: &Path) -> Stage {
    let kvmeter = env!("CARGO_BIN_EXE_kvmeter");
    let prepare = |agent: &mut Agent| {
        let config = agent.config();
        let home = config.parent().unwrap().display().to_string();
        let text = format!(
            "if [ \"$1\" != run ]; then exec {kvmeter} \"$@\"; fi\n\
             mkdir -p {home}/state {home}/run\n\
             chown {USER}:{USER} {home}/state {home}/run\n\
             {kvmeter} prepare --config {config}\n\
             exec unshare --mount --propagation private sh -e -c '\n\
             {PRIVATE_DEV}\n\
             for place in {home}/state {home}/run; do mount --bind $place $place; done\n\
             for place in /proc /sys /; do mount -o remount,bind,ro $place; done\n\
             exec \"$@\"' sh {user} {kvmeter} \"$@\"",
            config = config.display(),
            user = as_user(&granted()),
        );
        agent.use_program(script(dir, "kvmeter", &text));
    };
    let perms = format!("agentXPerms 0660 0750 {} {USER}\n", 0);
    Stage::made("", &perms, "", prepare)
}

/// A directory on the filesystem of the build: `/tmp` may be in memory, where nothing is counted.
pub(crate) fn temporary() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

pub(crate) fn raw(path: impl AsRef<Path>) {
    fs::write(path, vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
}

/// A script that is executed instead of a program.
pub(crate) fn script(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, format!("#!/bin/sh -e\n{text}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// QEMU in a mount namespace of its own, which `prepare` changes first. Paused, with its monitor.
pub(crate) fn qemu_after(dir: &Path, prepare: &str, socket: &str, more: &[&str]) -> (Child, Qmp) {
    let accelerator = if missing("kvm").is_none() { "kvm" } else { "tcg" };
    let start = format!("{prepare}\nexec setpriv --pdeathsig KILL qemu-system-x86_64 \"$@\"");
    let start = script(dir, "start-qemu", &start);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(start);
    command.args(["-accel", accelerator, "-S", "-nodefaults", "-display", "none", "-m", "64"]);
    command.args(["-name", "paths,debug-threads=on", "-monitor", "none", "-serial", "none"]);
    command.args(["-qmp", &format!("unix:{socket},server=on,wait=off")]).args(more);
    command.current_dir(dir).env("PWD", dir).stdin(Stdio::null()).stdout(Stdio::null());
    let child = Child::start(&mut command).unwrap();
    let qmp = Qmp::connect(&dir.join("qmp")).unwrap();
    (child, qmp)
}

pub(crate) fn node(name: &str, driver: &str, path: &str) -> String {
    format!(
        r#"{{"driver":"{driver}","filename":"{path}","node-name":"{name}","cache":{{"direct":true}}}}"#
    )
}

/// Waits until the disk is counted in the kernel. Returns vmIndex and vmStorageIndex.
pub(crate) fn counted(stage: &Stage, pid: u32, target: &str) -> [u32; 2] {
    let found = |stage: &Stage| {
        let vm = stage.vm("pid", pid)?;
        let disk = vm["disks"].as_array()?.iter().find(|disk| disk["target"] == target)?;
        let is_counted = disk["counted_by"].as_str().is_some_and(|by| by != "hypervisor");
        is_counted.then(|| [index(&vm).unwrap(), index(disk).unwrap()])
    };
    wait_until(PATIENCE, &format!("{target} is counted"), || found(stage))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()))
}

/// Has each disk, given by its name and that of its node in QEMU, read a number of octets of its own, and compares sizes and
/// counts.
pub(crate) fn check(stage: &mut Stage, qmp: &mut Qmp, pid: u32, disks: &[(&str, &str)]) {
    let indexes: Vec<_> = disks.iter().map(|(disk, _)| counted(stage, pid, disk)).collect();
    for index in &indexes {
        let kib = Some(SIZE / 1024);
        stage.wait_for("the size of a disk", DEFINED_SIZE, index, |size| size == kib);
    }
    let before: Vec<_> =
        indexes.iter().map(|index| stage.number(READ_OCTETS, index).unwrap()).collect();
    for (number, (_, node)) in disks.iter().enumerate() {
        for place in 0..=number {
            qmp.request(node, &format!("read {}k 64k", place * 64)).unwrap();
        }
    }
    for (number, before) in before.into_iter().enumerate() {
        let expected = before + 65_536 * (number as u64 + 1);
        let what = format!("the reads of {}: {expected} after {before}", disks[number].0);
        stage.wait_for(&what, READ_OCTETS, &indexes[number], |octets| octets == Some(expected));
    }
}

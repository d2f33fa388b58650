//! The agent in the sandbox of its systemd unit: a user of its own with ambient capabilities, a private `/dev`, read-only mounts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Command, Output},
};

use xtask::lab::{PATIENCE, wait_until};

use crate::lab::{
    sandbox::{USER, as_user, check, counted, node, qemu_after, raw, temporary, unit_stage},
    stage::{Stage, VM_CPU_TIME},
};

/// What a shell of the agent's user says, with the capabilities that the agent keeps.
fn shell(text: &str) -> Output {
    let command = format!("exec {} sh -c '{text}'", as_user(",+sys_ptrace,+dac_read_search"));
    Command::new("sh").args(["-c", &command]).output().unwrap()
}

#[test]
fn an_agent_in_the_units_sandbox_serves_vms_counters_and_disks() {
    require!("ebpf", "snmpd", "qemu", "root");
    let dir = temporary();
    raw(dir.path().join("disk"));
    let mut stage = unit_stage(dir.path());
    let log = stage.agent.log();
    assert!(!log.contains("without counters"), "{log}");
    let of_agent = format!("/proc/{}/status", stage.agent.child().unwrap().pid());
    let field = |name: &str| {
        let text = fs::read_to_string(&of_agent).unwrap();
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned()
    };
    assert!(field("Uid:").starts_with(&USER.to_string()), "{}", field("Uid:"));
    // CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
    assert_eq!(field("CapEff:"), format!("{:016x}", 1 << 19 | 1 << 2));
    assert_eq!((field("CapAmb:"), field("NoNewPrivs:")), (format!("{:016x}", 0), "1".to_owned()));

    let path = dir.path().join("disk");
    let blockdev = node("d0", "file", path.to_str().unwrap());
    let devices = ["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d0,id=data"];
    let socket = dir.path().join("qmp");
    let (qemu, mut qmp) = qemu_after(dir.path(), ":", socket.to_str().unwrap(), &devices);
    let [vm, _] = counted(&stage, qemu.pid(), "data");
    stage.wait_for("CPU time", VM_CPU_TIME, &[vm], |time| time.is_some_and(|time| time > 0));
    check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);
    let hooks = stage.status()["probe"]["hooks"].clone();
    let is_live = |name: &str| {
        hooks.as_array().unwrap().iter().any(|hook| hook["name"] == name && hook["live"] == true)
    };
    assert!(is_live("sched_switch") && is_live("sched_process_exit"), "{hooks}");

    // A restart adopts what the user has pinned.
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    assert_eq!(stage.status()["probe"]["adopted"], true, "{}", stage.agent.log());
    check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);

    // The processes of others can be read, and not written.
    let target = dir.path().join("roots");
    fs::write(&target, "untouched").unwrap();
    fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
    let root = format!("/proc/{}/root", qemu.pid());
    let (pid, file) = (qemu.pid(), target.display());
    let read = shell(&format!("cat {root}{file}"));
    assert_eq!(String::from_utf8_lossy(&read.stdout), "untouched", "{read:?}");
    for write in [
        format!("echo changed > {root}{file}"),
        format!("echo changed > {root}/etc/kvmeter-was-here"),
        format!("chmod 666 {root}{file}"),
        format!("rm -f {root}{file}"),
        format!("exec 3<>/proc/{pid}/mem"),
        format!("echo 1 > {root}/proc/sys/kernel/panic"),
        format!("kill -0 {pid}"),
    ] {
        let output = shell(&write);
        assert!(!output.status.success(), "{write}: {output:?}");
    }
    assert_eq!(fs::read_to_string(&target).unwrap(), "untouched");
}

/// A directory in the bpffs that is removed when this is dropped.
struct Pins(String);

impl Drop for Pins {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_pin_directory_of_another_user_is_refused_and_not_given_away() {
    require!("ebpf", "snmpd", "root");
    let pins = Pins(format!("/sys/fs/bpf/kvmeter-theirs-{}", std::process::id()));
    fs::create_dir(&pins.0).unwrap();
    std::os::unix::fs::chown(&pins.0, Some(USER), Some(USER)).unwrap();
    let dir = temporary();
    let config = dir.path().join("kvmeter.toml");
    let text = format!(
        "[probe]\npin_dir = \"{}\"\n[state]\ndir = \"{dir}\"\nruntime_dir = \"{dir}/run\"\n\
         [inventory]\nlibvirt = \"\"\n",
        pins.0,
        dir = dir.path().display()
    );
    fs::write(&config, text).unwrap();
    let kvmeter = |command: &str| {
        let mut kvmeter = Command::new(env!("CARGO_BIN_EXE_kvmeter"));
        kvmeter.arg(command).arg("--config").arg(&config).output().unwrap()
    };
    // The state directory is root's.
    let prepared = kvmeter("prepare");
    assert!(!prepared.status.success());
    let said = String::from_utf8_lossy(&prepared.stderr).into_owned();
    assert!(said.contains("belongs to user 64123"), "{said}");
    assert_eq!(fs::metadata(&pins.0).unwrap().uid(), USER);
    let said = String::from_utf8_lossy(&kvmeter("check").stdout).into_owned();
    assert!(said.lines().any(|line| line.starts_with("FAIL  pin directory")), "{said}");
    assert!(fs::read_dir(&pins.0).unwrap().next().is_none(), "nothing was made in it");

    // Nor by the agent.
    let stage = Stage::made("", "", "", |agent| {
        let text = fs::read_to_string(agent.config()).unwrap();
        let own = text.lines().find(|line| line.starts_with("pin_dir")).unwrap();
        fs::write(agent.config(), text.replace(own, &format!("pin_dir = \"{}\"", pins.0))).unwrap();
    });
    assert_eq!(stage.status()["probe"]["mode"], "degraded");
    assert!(stage.agent.log().contains("belongs to user 64123"), "{}", stage.agent.log());
}

#[test]
fn a_hook_whose_pin_is_removed_is_not_live() {
    require!("ebpf", "snmpd", "root");
    let stage = Stage::new();
    let live = |stage: &Stage| {
        let probe = stage.status()["probe"].clone();
        let hooks = probe["hooks"].as_array().unwrap().clone();
        let hook = hooks.iter().find(|hook| hook["name"] == "sched_switch").unwrap();
        (hook["live"] == true, probe["pin_dir"].as_str().unwrap().to_owned())
    };
    let (is_live, pin_dir) = live(&stage);
    assert!(is_live);
    let layout = fs::read_dir(pin_dir).unwrap().next().unwrap().unwrap().path();
    fs::remove_file(layout.join("link_sched_switch")).unwrap();
    wait_until(PATIENCE, "the hook is not live", || (!live(&stage).0).then_some(())).unwrap();
}

//! `kvmeter check --as-service`: judges what the service can do, by becoming the service of a unit.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::chown,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;

use crate::lab::sandbox::temporary;

/// A user and group that nothing else has.
const USER: u32 = 64_123;

const UNIT: &str = include_str!("../../etc/kvmeter.service");

/// A configuration, and units beside it.
struct Home(TempDir);

impl Home {
    fn new() -> Self {
        let home = Self(temporary());
        let dir = home.path().display();
        let text = format!(
            "[state]\ndir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n[agentx]\naddress = \"unix:{dir}/master\"\n\
             [probe]\npin_dir = \"/sys/fs/bpf/kvmeter-unmade-{}\"\n[inventory]\nlibvirt = \"test:///default\"\n",
            std::process::id()
        );
        fs::write(home.path().join("kvmeter.toml"), text).unwrap();
        for name in ["state", "run"] {
            fs::create_dir(home.path().join(name)).unwrap();
            chown(home.path().join(name), Some(USER), Some(USER)).unwrap();
        }
        home
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// What `check` says in the service of the shipped unit with these lines added.
    fn check(&self, more: &str) -> (Output, String) {
        let dir = self.path().display();
        let hides = |place: &str| self.path().starts_with(place);
        let home = if hides("/root") || hides("/home") { "ProtectHome=no" } else { "" };
        let unit = self.path().join("kvmeter.service");
        // The checkout may be below the directories that the unit hides.
        let text = format!(
            "{UNIT}\n[Service]\nUser={USER}\nGroup={USER}\nReadWritePaths={dir}/state {dir}/run\nPrivateTmp=no\n\
             {home}\n{more}\n"
        );
        fs::write(&unit, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_kvmeter"))
            .arg("check")
            .arg(format!("--as-service={}", unit.display()))
            .arg("--config")
            .arg(self.path().join("kvmeter.toml"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        (output, said)
    }
}

fn line<'a>(said: &'a str, name: &str) -> &'a str {
    let is_its = |line: &&str| line.get(6..).is_some_and(|rest| rest.starts_with(name));
    said.lines().find(is_its).unwrap_or_else(|| panic!("no line for {name} in:\n{said}"))
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[test]
fn the_check_has_the_users_rights_in_the_units_sandbox() {
    require!("ebpf", "root");
    let home = Home::new();
    let before = mounts();
    let (_, said) = home.check("");
    let of_user = format!("those of the service, user {USER} ({USER}); ");
    assert!(line(&said, "rights").contains(&of_user), "{said}");
    assert!(line(&said, "rights").contains("not tried: ") && said.contains("SystemCallFilter"));
    for name in [
        "CAP_BPF",
        "CAP_PERFMON",
        "CAP_SYS_PTRACE",
        "CAP_DAC_READ_SEARCH",
        "KVM",
        "bpffs",
        "pin directory",
        "files of VMs",
        "state.dir",
        "state.runtime_dir",
        "sched_switch",
        "sched_process_exit",
    ] {
        assert!(line(&said, name).starts_with("ok"), "{name}:\n{said}");
    }
    assert!(line(&said, "files of VMs").contains("/dev (PrivateDevices=)"), "{said}");
    assert_eq!(mounts(), before);
    assert!(!said.contains("run as root"), "{said}");

    // A service that may do less.
    let (output, said) = home.check("AmbientCapabilities=~CAP_SYS_PTRACE CAP_DAC_READ_SEARCH");
    assert_eq!(output.status.code(), Some(1), "{said}");
    for name in ["CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH"] {
        assert!(line(&said, name).starts_with("FAIL"), "{said}");
        assert!(line(&said, name).contains("AmbientCapabilities="), "{said}");
    }
    assert!(line(&said, "CAP_BPF").starts_with("ok"), "{said}");
    assert!(line(&said, "files of VMs").starts_with("warn"), "{said}");
    let (_, said) = home.check("ReadWritePaths=\nReadWritePaths=/sys/fs/bpf\n");
    for name in ["state.dir", "state.runtime_dir"] {
        assert!(line(&said, name).contains("Read-only file system"), "{said}");
    }
    let (_, said) = home.check("ProtectKernelTunables=yes\nReadWritePaths=\nExecStartPre=");
    assert!(line(&said, "bpffs").starts_with("FAIL"), "{said}");
    chown(home.path().join("state"), Some(0), Some(0)).unwrap();
    let (_, said) = home.check("");
    assert!(line(&said, "state.dir").starts_with("FAIL"), "{said}");
    assert_eq!(mounts(), before);
}

#[test]
fn a_service_that_cannot_be_entered_is_named_with_its_fix() {
    require!("root");
    let home = Home::new();
    for (more, name) in [
        ("User=kvmeter-nobody-has-this", "the user kvmeter-nobody-has-this does not exist"),
        ("Group=kvmeter-nobody-has-this", "the group kvmeter-nobody-has-this does not exist"),
        ("DynamicUser=yes", "DynamicUser=yes"),
    ] {
        let (output, said) = home.check(more);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        assert!(said.starts_with("FAIL  rights") && said.contains(name), "{said}");
        assert!(said.contains(". Fix: "), "{said}");
    }
    // setpriv(1), of util-linux
    let output = Command::new("setpriv")
        .args(["--reuid", &USER.to_string(), "--clear-groups", "--inh-caps=-all", "--"])
        .args([env!("CARGO_BIN_EXE_kvmeter"), "check", "--as-service", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["checks"][0]["verdict"], "fail");
    assert!(json["checks"][0]["fix"].as_str().unwrap().ends_with("as root"), "{json}");
}

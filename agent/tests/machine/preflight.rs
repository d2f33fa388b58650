//! `kvmeter check` on a host that lacks something.

use std::{fs, process::Command};

#[test]
fn a_missing_capability_is_named_with_its_fix() {
    require!("root");
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("kvmeter.toml");
    let state = dir.path().display();
    let text = format!("[state]\ndir = \"{state}/state\"\nruntime_dir = \"{state}/run\"\n");
    fs::write(&config, text).unwrap();
    for (name, capability) in [("-bpf", "CAP_BPF"), ("-perfmon", "CAP_PERFMON")] {
        // setpriv(1), of util-linux
        let output = Command::new("setpriv")
            .args(["--bounding-set", &format!("{name},-sys_admin"), "--inh-caps=-all", "--"])
            .args([env!("CARGO_BIN_EXE_kvmeter"), "check", "--config"])
            .arg(&config)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        let line = |need: &str| {
            let is_its = |line: &&str| line.get(6..).is_some_and(|rest| rest.starts_with(need));
            said.lines().find(is_its).unwrap_or_else(|| panic!("no line for {need} in:\n{said}"))
        };
        let found = line(capability);
        assert!(found.starts_with(&format!("FAIL  {capability}")), "{found}");
        assert!(found.contains("Fix: run as root"), "{found}");
        assert!(line("hooks").starts_with("warn"), "{said}");
    }
}

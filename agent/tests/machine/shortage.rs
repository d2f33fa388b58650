//! An agent that runs out of descriptors.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, process::Command};

use xtask::lab::{PATIENCE, TinyGuest, wait_until};

use crate::lab::stage::Stage;

fn limit_descriptors(pid: u32, soft: usize) {
    let limit = format!("--nofile={soft}:");
    let limited = Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status();
    assert!(limited.unwrap().success());
}

#[test]
fn a_vm_that_starts_while_descriptors_are_short_is_found_afterwards() {
    require!("ebpf", "kvm", "snmpd", "root");
    let stage = Stage::new();
    let known = TinyGuest::start(&["--duty", "half"]).unwrap();
    stage.wait_for_vm(known.pid(), 1);
    let agent = stage.agent.child().unwrap().pid();
    let open = fs::read_dir(format!("/proc/{agent}/fd")).unwrap().count();
    limit_descriptors(agent, open.min(8));
    let guest = TinyGuest::start(&["--duty", "half"]).unwrap();
    let warning = "it is tried again, and what was known of VMs stays";
    let warned = wait_until(PATIENCE, "the log says so", || {
        stage.agent.log().contains(warning).then_some(())
    });
    // The scans that follow a start are over, and full scans have failed.
    let failed = wait_until(PATIENCE, "full scans are tried", || {
        (stage.agent.log().matches("Cannot scan all processes").count() >= 3).then_some(())
    });
    limit_descriptors(agent, 1024);
    warned.unwrap_or_else(|error| panic!("{error}:\n{}", stage.agent.log()));
    failed.unwrap_or_else(|error| panic!("{error}:\n{}", stage.agent.log()));
    stage.wait_for_vm(guest.pid(), 1);
    stage.wait_for_vm(known.pid(), 1);
    let status = stage.status();
    let state = status["sources"][0]["state"].as_str().unwrap();
    let expected = "could not read processes in the last minute: Too many open files";
    assert!(state.starts_with(expected), "{state}");
    assert_eq!(stage.agent.log().matches(warning).count(), 1, "{}", stage.agent.log());
}

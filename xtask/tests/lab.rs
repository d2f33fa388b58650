//! The lab's other things: waiting, what a machine lacks, snmpd and QEMU.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
extern crate xtask_test;

use std::{
    env, fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use xtask::{
    lab::{Accelerator, LabError, PATIENCE, Qemu, Snmpd, lacks, missing, snmp, wait_until},
    require,
};

const SYS_UP_TIME: &str = "1.3.6.1.2.1.1.3.0";
const SYS_CONTACT: &str = "1.3.6.1.2.1.1.4.0";

#[test]
fn what_is_waited_for_in_vain_is_named() {
    let limit = Duration::from_millis(20);
    let start = Instant::now();
    let error = wait_until(limit, "the moon sets", || None::<()>).unwrap_err();
    assert!(start.elapsed() >= limit);
    assert_eq!(error.to_string(), "Waited in vain for 20ms: the moon sets");
    let mut looks = 0..5;
    let seen = wait_until(PATIENCE, "the fourth look", || looks.next().filter(|&look| look == 3));
    assert_eq!(seen.unwrap(), 3);
}

#[test]
fn what_a_machine_lacks_is_a_reason_or_where_it_is_required_a_failure() {
    const REQUIRED: &str = "a thing of this test";
    let reason = "it is not there";
    if env::var("KVMETER_REQUIRE").is_ok_and(|names| names.split(',').any(|name| name == REQUIRED))
    {
        // The child below, in which this must panic.
        lacks(REQUIRED, reason).unwrap_err();
        return;
    }
    assert_eq!(lacks(REQUIRED, reason).unwrap_err(), reason);
    assert_eq!(missing("something unknown"), None);
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "what_a_machine_lacks_is_a_reason_or_where_it_is_required_a_failure"])
        .env("KVMETER_REQUIRE", format!("kvm,{REQUIRED}"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[child.stdout, child.stderr].concat()).into_owned();
    assert!(!child.status.success(), "{said}");
    assert!(said.contains("a thing of this test is required here, but it is not there"), "{said}");
}

#[test]
fn snmpd_serves_and_comes_back_as_it_was() {
    require!("snmpd");
    let dir = tempfile::tempdir().unwrap();
    let mut snmpd = Snmpd::start(dir.path(), "sysContact somebody\n").unwrap();
    let port = snmpd.port();
    let serves = |snmpd: &Snmpd| {
        let contact = snmpd.ask("snmpget", &["-Oqv"], &[SYS_CONTACT]).unwrap();
        // In quotes where the MIB that says what it is is not installed.
        assert_eq!(contact.trim().trim_matches('"'), "somebody");
        let private = snmpd.ask("snmpget", &["-Oqvt", "-cprivate"], &[SYS_UP_TIME]).unwrap();
        private.trim().parse::<u64>().unwrap();
    };
    serves(&snmpd);
    assert_eq!(snmpd.agentx_address(), format!("unix:{}", dir.path().join("master").display()));
    assert!(dir.path().join("master").exists());
    let first = snmpd.child().unwrap().pid();
    snmpd.end();
    assert!(snmpd.child().is_none() && !is_process(first));
    let error = snmpd.ask("snmpget", &["-t1"], &[SYS_UP_TIME]).unwrap_err();
    assert!(
        matches!(&error, LabError::Failed { program, .. } if program.contains(SYS_UP_TIME)),
        "{error}"
    );

    snmpd.begin().unwrap();
    assert_eq!(snmpd.port(), port);
    serves(&snmpd);
    let second = snmpd.child().unwrap().pid();
    drop(snmpd);
    assert!(!is_process(second));
}

#[test]
fn a_tool_that_is_not_there_is_named() {
    let error = snmp("snmpnothing", 1, &[], &[SYS_UP_TIME]).unwrap_err();
    assert!(error.to_string().contains("snmpnothing cannot be started"), "{error}");
}

#[test]
fn qemu_runs_under_its_name_and_ends_with_the_value() {
    require!("qemu");
    let accelerators = [Accelerator::Kvm, Accelerator::Tcg];
    for accelerator in accelerators {
        if accelerator == Accelerator::Kvm && missing("kvm").is_some() {
            continue;
        }
        let mut qemu = Qemu::start("lab-test", accelerator, &["-smp", "2"]).unwrap();
        let pid = qemu.child.pid();
        wait_until(PATIENCE, "its two vCPUs have threads", || {
            assert_eq!(qemu.child.ended(), None, "{accelerator:?}");
            (vcpu_threads(pid) == 2).then_some(())
        })
        .unwrap();
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        assert!(line.starts_with("qemu-system-x86_64 "), "{line}");
        assert!(line.contains("-name lab-test,debug-threads=on"), "{line}");
        drop(qemu);
        assert!(!is_process(pid));
    }
}

fn is_process(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Threads that QEMU calls `CPU 0/KVM`, `CPU 1/TCG` and so on.
fn vcpu_threads(pid: u32) -> usize {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("CPU "))
        .count()
}

fn main() -> std::process::ExitCode {
    xtask::harness::run()
}

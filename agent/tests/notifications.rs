//! Notifications from a change of a VM to snmptrapd, through snmpd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use lab::stage::{Stage, VM_NUMBER};
use xtask::lab::{PATIENCE, Snmptrapd, TinyGuest, wait_until};

const BOTH: &str = "[notifications]\nper_vm = true\nbulk = true\nbulk_window_ms = 300\n";

/// `NUMBER: name = value, …`: the notification's number and its objects below vmMIB, without sysUpTime.
fn told(lines: &[String]) -> Vec<String> {
    const VM_MIB: &str = ".1.3.6.1.2.1.236.";
    let parts = |line: &String| {
        let trap = line
            .split(".1.3.6.1.6.3.1.1.4.1.0 = OID: ")
            .nth(1)
            .unwrap_or_else(|| panic!("no notification: {line}"));
        let mut bindings = trap.split('\t').map(|binding| binding.trim().replace(VM_MIB, ""));
        let number = bindings.next().unwrap();
        let number = number.strip_prefix("0.").unwrap().to_owned();
        format!("{number}: {}", bindings.collect::<Vec<_>>().join(", "))
    };
    lines.iter().map(parts).collect()
}

#[test]
fn a_vm_that_starts_and_ends_is_told_one_by_one_and_in_bulk() {
    require!("kvm", "snmpd", "snmptrapd");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let mut stage = Stage::configured("", &snmptrapd.sinks(true, false, false), BOTH);
    let wait = |count: usize| {
        wait_until(PATIENCE, "the notifications have come", || {
            let received = snmptrapd.received();
            (received.len() >= count).then_some(received)
        })
        .unwrap_or_else(|error| {
            panic!("{error}: {:?}\n{}", snmptrapd.received(), stage.agent.log())
        })
    };
    let guest = TinyGuest::start(&["--name", "told", "--duty", "idle"]).unwrap();
    let started = wait(2);
    drop(guest);
    let all = wait(6);
    assert_eq!(started[..], all[..2]);
    let of_vm = r#"1.4.1.2.1 = STRING: "told", 1.4.1.3.1 = """#;
    assert_eq!(
        told(&all),
        [
            // running, from shutdown(11)
            format!("1: {of_vm}, 1.4.1.6.1 = INTEGER: 11"),
            "11: 1.11.0 = Hex-STRING: 80".to_owned(),
            // shutdown, from running(4); and deleted, transient(3)
            format!("3: {of_vm}, 1.4.1.6.1 = INTEGER: 4"),
            format!("10: {of_vm}, 1.4.1.6.1 = INTEGER: 11, 1.4.1.8.1 = INTEGER: 3"),
            "13: 1.11.0 = Hex-STRING: 80".to_owned(),
            "20: 1.11.0 = Hex-STRING: 80".to_owned(),
        ]
    );
    stage.wait_for("the VM is gone", VM_NUMBER, &[], |number| number == Some(0));
    let status = stage.status();
    assert_eq!(status["notifications"]["sent"], 6);
    assert_eq!(status["notifications"]["dropped"], 0);
    assert_eq!(status["notifications"]["refused"], 0);
}

#[test]
fn traps_informs_and_snmpv3_are_the_masters_choice() {
    require!("kvm", "snmpd", "snmptrapd");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let stage = Stage::configured(
        "",
        &snmptrapd.sinks(true, true, true),
        "[notifications]\nper_vm = true\n",
    );
    let _guest = TinyGuest::start(&["--name", "told", "--duty", "idle"]).unwrap();
    let received = wait_until(PATIENCE, "three of one kind", || {
        let received = snmptrapd.received();
        (received.len() >= 3).then_some(received)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", snmptrapd.received(), stage.agent.log()));
    let told = told(&received);
    assert!(told[0].starts_with("1: 1.4.1.2.1 = STRING: \"told\""), "{told:?}");
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
}

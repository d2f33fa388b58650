//! Notifications from a change of a VM to snmptrapd, through snmpd.

use crate::lab::{
    stage::{Stage, VM_NUMBER},
    traps::{notifications, wait_for},
};
use rustix::process::Signal;
use xtask::lab::{Snmptrapd, TinyGuest, Way};

const BOTH: &str = "[notifications]\nper_vm = true\nbulk = true\nbulk_window_ms = 300\n";

#[test]
fn a_vm_that_starts_and_ends_is_told_one_by_one_and_in_bulk() {
    require!("kvm", "snmpd", "snmptrapd");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let mut stage = Stage::configured("", &snmptrapd.sinks(&[Way::Trap]), BOTH);
    let guest = TinyGuest::start(&["--name", "told", "--duty", "idle"]).unwrap();
    let started = wait_for(&snmptrapd, Way::Trap, 2, &stage);
    guest.into_child().signal(Signal::TERM).unwrap();
    let all = wait_for(&snmptrapd, Way::Trap, 6, &stage);
    assert_eq!(started[..], all[..2]);
    let of_vm = r#"1.4.1.2.1 = STRING: "told", 1.4.1.3.1 = """#;
    assert_eq!(
        notifications(&all),
        [
            // running, from shutdown(11)
            format!("1: {of_vm}, 1.4.1.6.1 = INTEGER: 11"),
            "11: 1.11.0 = Hex-STRING: 80".to_owned(),
            // shutdown, from running(4); and deleted, unknown(1)
            format!("3: {of_vm}, 1.4.1.6.1 = INTEGER: 4"),
            format!("10: {of_vm}, 1.4.1.6.1 = INTEGER: 11, 1.4.1.8.1 = INTEGER: 1"),
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
fn a_vm_whose_process_is_killed_has_crashed() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let stage = Stage::configured("", &snmptrapd.sinks(&[Way::Trap]), BOTH);
    let guest = TinyGuest::start(&["--name", "killed", "--duty", "idle"]).unwrap();
    wait_for(&snmptrapd, Way::Trap, 2, &stage);
    guest.into_child().signal(Signal::KILL).unwrap();
    let all = notifications(&wait_for(&snmptrapd, Way::Trap, 6, &stage));
    let of_vm = r#"1.4.1.2.1 = STRING: "killed", 1.4.1.3.1 = """#;
    assert_eq!(
        all[2..],
        [
            // crashed, from running(4); and deleted, unknown(1)
            format!("9: {of_vm}, 1.4.1.6.1 = INTEGER: 4"),
            format!("10: {of_vm}, 1.4.1.6.1 = INTEGER: 12, 1.4.1.8.1 = INTEGER: 1"),
            "19: 1.11.0 = Hex-STRING: 80".to_owned(),
            "20: 1.11.0 = Hex-STRING: 80".to_owned(),
        ],
        "{}",
        stage.agent.log()
    );
}

#[test]
fn the_lines_for_snmpd_in_the_documentation_send() {
    require!("kvm", "snmpd", "snmptrapd");
    let documentation = include_str!("../../docs/notifications.md");
    let section = documentation.split("## snmpd.conf").nth(1).unwrap();
    let section = section.split("The manager needs").next().unwrap();
    let lines: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("    ")).collect();
    assert_eq!(lines.len(), 3, "an inform by SNMPv3, and both by SNMPv2c");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let manager = format!("127.0.0.1:{}", snmptrapd.port());
    let config = lines.join("\n").replace("manager.example.net", &manager);
    let stage = Stage::configured("", &format!("{config}\n"), "[notifications]\nper_vm = true\n");
    let _guest = TinyGuest::start(&["--name", "told", "--duty", "idle"]).unwrap();
    for way in [Way::InformV3, Way::Trap, Way::Inform] {
        let received = wait_for(&snmptrapd, way, 1, &stage);
        assert!(
            notifications(&received)[0].starts_with("1: 1.4.1.2.1 = STRING: \"told\""),
            "{way:?}"
        );
    }
}

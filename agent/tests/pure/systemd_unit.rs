//! The systemd unit says in its words what the program says in its own: neither may drift.

use std::collections::BTreeSet;

use kvmeter::config::Config;
use kvmeter::privileges::REQUIRED;

const UNIT: &str = include_str!("../../etc/kvmeter.service");

/// The value of a setting that the unit has once.
fn setting(name: &str) -> &'static str {
    let begin = format!("{name}=");
    let mut values = UNIT.lines().filter_map(|line| line.strip_prefix(begin.as_str()));
    match (values.next(), values.next()) {
        (Some(value), None) => value,
        other => panic!("{name}: {other:?}"),
    }
}

#[test]
fn it_grants_what_is_required_and_no_more() {
    let required = REQUIRED.iter().map(|required| required.capability.to_string());
    let required: BTreeSet<String> = required.collect();
    for set in ["CapabilityBoundingSet", "AmbientCapabilities"] {
        let granted = setting(set).split(' ').map(str::to_owned).collect();
        assert_eq!(required, granted, "{set}");
    }
}

#[test]
fn it_runs_as_a_user_of_its_own_that_the_other_files_know() {
    assert_eq!((setting("User"), setting("Group")), ("kvmeter", "kvmeter"));
    assert_eq!(setting("ExecStartPre"), "-+/usr/bin/kvmeter prepare");
    let sysusers = include_str!("../../etc/kvmeter.sysusers");
    assert!(sysusers.lines().any(|line| line.starts_with("u kvmeter ")));
    let snmpd = include_str!("../../etc/snmpd-kvmeter.conf");
    assert!(snmpd.lines().any(|line| line == "agentXPerms 0660 0750 root kvmeter"));
}

#[test]
fn it_makes_the_directories_of_the_defaults() {
    let config = Config::default();
    assert_eq!(
        format!("/run/{}", setting("RuntimeDirectory")),
        config.state.runtime_dir.display().to_string()
    );
    assert_eq!(
        format!("/var/lib/{}", setting("StateDirectory")),
        config.state.dir.display().to_string()
    );
    assert!(config.probe.pin_dir.starts_with(setting("ReadWritePaths")));
}

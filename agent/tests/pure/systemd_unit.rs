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
    let granted: BTreeSet<String> =
        setting("CapabilityBoundingSet").split(' ').map(str::to_owned).collect();
    let required = REQUIRED.iter().map(|required| required.capability.to_string()).collect();
    assert_eq!(granted, required);
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

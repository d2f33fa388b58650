//! Notifications in the log of snmptrapd.

use xtask::lab::{PATIENCE, Snmptrapd, Way, wait_until};

use super::stage::Stage;

/// Waits for `count` notifications on this way, and returns those received.
pub(crate) fn wait_for(
    snmptrapd: &Snmptrapd,
    way: Way,
    count: usize,
    stage: &Stage,
) -> Vec<String> {
    wait_for_those(snmptrapd, way, "", count, stage)
}

/// The same, with those alone that contain a text.
pub(crate) fn wait_for_those(
    snmptrapd: &Snmptrapd,
    way: Way,
    text: &str,
    count: usize,
    stage: &Stage,
) -> Vec<String> {
    wait_until(PATIENCE, "the notifications have come", || {
        let mut received = snmptrapd.received(way);
        received.retain(|line| line.contains(text));
        (received.len() >= count).then_some(received)
    })
    .unwrap_or_else(|error| {
        panic!("{error}, {way:?}: {:#?}\n{}", snmptrapd.log(), stage.agent.log())
    })
}

/// `NUMBER: name = value, …`: the notification's number and its objects below vmMIB, without sysUpTime.
pub(crate) fn notifications(lines: &[String]) -> Vec<String> {
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

//! A libvirtd that hangs, goes away and comes back, and how soon the agent has it again.

use std::time::Duration;

use crate::lab::{
    libvirt::{Host, domain, uuid},
    stage::{VM_CPU_CORE_TIME, VM_CPU_TIME, VM_NUMBER},
};
use kvmeter::inventory::OperState;
use rustix::process::Signal;

/// Limit for the agent to reconnect.
const SOON: Duration = Duration::from_secs(2);

#[test]
fn a_libvirt_that_hangs_or_goes_away_costs_no_counter() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    host.libvirtd.define(&domain("steady", 3, "<vcpu>1</vcpu>", "")).unwrap();
    host.libvirtd.virsh(&["start", &uuid(3)]).unwrap();
    let index = host.stage.index_by_uuid(&uuid(3));
    host.wait_for_state(index, OperState::Running);
    host.stage.wait_for("it is counted", VM_CPU_CORE_TIME, &[index, 1], |time| time > Some(0));
    let counts_on = |host: &mut Host| {
        let before = host.stage.number(VM_CPU_TIME, &[index]).unwrap();
        host.stage.wait_for("the counter moves", VM_CPU_TIME, &[index], |time| {
            time.is_some_and(|time| time > before)
        });
    };

    host.libvirtd.child().unwrap().signal(Signal::STOP).unwrap();
    host.wait_for_source("it hangs", |source| {
        source["state"] == "it does not answer" && source["stale_since"].is_u64()
    });
    counts_on(&mut host);
    host.wait_for_state(index, OperState::Running);
    host.libvirtd.child().unwrap().go_on().unwrap();
    let back = host.wait_for_source("it answers again", |source| source["state"] == "live");
    assert!(back < SOON, "seen after {back:?}\n{}", host.stage.agent.log());

    host.libvirtd.end();
    host.wait_for_source("it is gone", |source| {
        source["state"] != "live" && source["stale_since"].is_u64()
    });
    counts_on(&mut host);
    assert!(host.stage.number(VM_NUMBER, &[]) == Some(1));
    host.libvirtd.begin().unwrap();
    let back = host.wait_for_source("it is back", |source| source["state"] == "live");
    assert!(back < SOON, "seen after {back:?}\n{}", host.stage.agent.log());
    counts_on(&mut host);
    assert_eq!(host.stage.index_by_uuid(&uuid(3)), index);

    // The index and the counters survive a restart of the agent, too.
    let before = host.stage.number(VM_CPU_TIME, &[index]).unwrap();
    host.stage.agent.end().unwrap();
    host.stage.agent.start().unwrap();
    assert_eq!(host.stage.index_by_uuid(&uuid(3)), index);
    host.stage.wait_for("it is counted", VM_CPU_TIME, &[index], |time| time > Some(before));

    host.libvirtd.virsh(&["destroy", &uuid(3)]).unwrap();
    host.wait_for_state(index, OperState::Shutdown);
}

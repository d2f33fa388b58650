//! Two real libvirt daemons with equal names and UUIDs, one of which hangs, goes away and comes back.

use std::time::{Duration, Instant};

use crate::lab::{
    libvirt::{domain, uuid},
    stage::{Stage, VM_NUMBER},
};
use kvmeter::inventory::OperState;
use rustix::process::Signal;
use tempfile::TempDir;
use xtask::lab::{Libvirtd, PATIENCE, wait_until};

const VM_OPER_STATE: &[u32] = &[4, 1, 6];

/// A change that one daemon reports is there, whatever the other does.
const SOON: Duration = Duration::from_secs(2);

/// Dropped in this order: the agent before the daemons.
struct Host {
    stage: Stage,
    daemons: [Libvirtd; 2],
    _dirs: [TempDir; 2],
}

impl Host {
    fn new() -> Self {
        let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let names = ["one", "two"];
        let mut daemons =
            dirs.iter().zip(names).map(|(dir, name)| Libvirtd::start_as(dir.path(), name).unwrap());
        let daemons = [daemons.next().unwrap(), daemons.next().unwrap()];
        for daemon in &daemons {
            daemon.define(&domain("twin", 5, "<vcpu>1</vcpu>", "")).unwrap();
        }
        let [first, second] = daemons.each_ref().map(Libvirtd::uri_read_only);
        let uris = format!("[\"{first}\", \"{second}\"]");
        let host = Self { stage: Stage::configured(&uris, "", ""), daemons, _dirs: dirs };
        for at in 0..2 {
            host.wait_for_source(at, "live", |state| state == "live");
        }
        host
    }

    fn wait_for_source(&self, at: usize, what: &str, is_so: impl Fn(&str) -> bool) {
        let uri = self.daemons[at].uri_read_only();
        wait_until(PATIENCE, what, || {
            let status = self.stage.status();
            let sources = status["sources"].as_array().unwrap().clone();
            let source = sources.iter().find(|source| source["uri"] == uri)?;
            is_so(source["state"].as_str()?).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.stage.agent.log()));
    }

    /// The vmIndex of the domain of the first daemon, which has the UUID, and of the second one's.
    fn indexes(&self) -> [u32; 2] {
        wait_until(PATIENCE, "both are served", || {
            let vms = self.stage.status()["vms"].as_array().unwrap().clone();
            let index = |has_uuid: bool| {
                let mut twins = vms.iter().filter(|vm| vm["name"] == "twin");
                let vm = twins.find(|vm| vm["uuid"].is_string() == has_uuid)?;
                u32::try_from(vm["index"].as_u64()?).ok()
            };
            Some([index(true)?, index(false)?])
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.stage.agent.log()))
    }

    fn wait_for_state(&mut self, index: u32, state: OperState) {
        let state = u64::from((state as i32).unsigned_abs());
        let seen =
            self.stage.wait_for("the state", VM_OPER_STATE, &[index], |seen| seen == Some(state));
        assert!(seen < SOON, "seen after {seen:?}");
    }

    fn virsh(&self, at: usize, command: &str) {
        self.daemons[at].virsh(&[command, &uuid(5)]).unwrap();
    }
}

#[test]
fn two_daemons_with_equal_names_and_uuids_do_not_disturb_each_other() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    let indexes = host.indexes();
    // Which daemon has which row: start the domain of the first one.
    host.virsh(0, "start");
    let running = u64::from((OperState::Running as i32).unsigned_abs());
    let first = wait_until(PATIENCE, "one of them runs", || {
        indexes
            .iter()
            .position(|&index| host.stage.number(VM_OPER_STATE, &[index]) == Some(running))
    })
    .unwrap();
    let [first, second] = [indexes[first], indexes[1 - first]];
    host.wait_for_state(second, OperState::Shutdown);

    host.daemons[1].child().unwrap().signal(Signal::STOP).unwrap();
    host.wait_for_source(1, "it hangs", |state| state == "it does not answer");
    host.virsh(0, "suspend");
    host.wait_for_state(first, OperState::Paused);
    let start = Instant::now();
    assert!(host.stage.number(VM_NUMBER, &[]) == Some(2));
    assert!(start.elapsed() < SOON);
    host.wait_for_state(second, OperState::Shutdown);
    host.daemons[1].child().unwrap().go_on().unwrap();
    host.wait_for_source(1, "it answers", |state| state == "live");

    host.daemons[1].end();
    host.wait_for_source(1, "it is gone", |state| state != "live");
    host.virsh(0, "resume");
    host.wait_for_state(first, OperState::Running);
    host.daemons[1].begin().unwrap();
    host.wait_for_source(1, "it is back", |state| state == "live");
    host.virsh(1, "start");
    host.wait_for_state(second, OperState::Running);
    host.wait_for_state(first, OperState::Running);
    host.virsh(0, "destroy");
    host.wait_for_state(first, OperState::Shutdown);
    host.wait_for_state(second, OperState::Running);

    // Another agent gives the same rows.
    host.stage.agent.end().unwrap();
    host.stage.agent.start().unwrap();
    host.wait_for_state(second, OperState::Running);
    host.wait_for_state(first, OperState::Shutdown);
    assert_eq!(host.indexes(), indexes);
}

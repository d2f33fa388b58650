//! The end of a VM is told in time and as what it was, also if the ring of the programs' events is full: any user can start processes
//! with the name of a QEMU, and plug a vCPU of a VM in and out.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::{
    lab::{
        sandbox::raw,
        stage::{Stage, VM_CUR_CPU_NUMBER},
        traps::{notifications, wait_for_those},
    },
    submission::Vmm,
};
use kvmeter_common::EVENT_RING_LEN;
use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, Snmptrapd, TinyGuest, Way, wait_until};

/// Events for which the ring has room: an event takes 24 bytes with the kernel's header.
const EVENTS: u32 = EVENT_RING_LEN / 24;

/// When the end of a VM is told late.
const LATE: Duration = Duration::from_millis(500);

/// Starts more processes with the name of a QEMU than the ring has room for events.
fn flood(dir: &Path) {
    let shell = dir.join("kvm");
    fs::copy("/bin/sh", &shell).unwrap();
    let script = format!("i=0; while [ $i -lt {} ]; do (:); i=$((i+1)); done", 2 * EVENTS);
    Child::start(Command::new(shell).args(["-c", &script])).unwrap().wait(PATIENCE).unwrap();
}

/// Plugs a second vCPU in and out until the events of its threads fill more than half of the ring.
fn plug_often(guest: &mut TinyGuest) {
    for _ in 0..EVENTS / 2 + 50 {
        guest.add_vcpu().unwrap();
        // Asleep inside KVM_RUN.
        let stat = format!("/proc/{}/task/{}/stat", guest.pid(), guest.tids()[1]);
        while !fs::read_to_string(&stat).unwrap().contains(") S ") {
            thread::yield_now();
        }
        guest.remove_vcpu().unwrap();
    }
}

/// Calls `fill` while the agent is stopped, has a VM killed, and lets the agent go on. Returns how long it took to be told.
fn told_after(fill: impl FnOnce(&Path, &mut TinyGuest)) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let sinks = snmptrapd.sinks(&[Way::Trap]);
    let mut stage = Stage::configured("", &sinks, "[notifications]\nper_vm = true\n");
    let mut other = TinyGuest::start(&["--name", "other", "--duty", "idle"]).unwrap();
    let guest = TinyGuest::start(&["--name", "killed", "--duty", "idle"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 1);
    stage.wait_for_vm(other.pid(), 1);
    wait_for_those(&snmptrapd, Way::Trap, "killed", 1, &stage);
    stage.agent.child().unwrap().stop().unwrap();
    let started = Instant::now();
    fill(dir.path(), &mut other);
    println!("events for {:?}", started.elapsed());
    let mut guest = guest.into_child();
    guest.signal(Signal::KILL).unwrap();
    guest.wait(PATIENCE).unwrap();
    stage.agent.child().unwrap().go_on().unwrap();
    let started = Instant::now();
    let all = notifications(&wait_for_those(&snmptrapd, Way::Trap, "killed", 2, &stage));
    let took = started.elapsed();
    println!("told after {took:?}: {}", all[1]);
    assert!(all[1].starts_with("9: "), "crashed: {}", all[1]);
    stage.wait_for("its row is gone", VM_CUR_CPU_NUMBER, &[index], |number| number.is_none());
    assert!(stage.status()["probe"]["events_lost"].as_u64().unwrap() > 0);
    took
}

#[test]
fn a_flood_of_processes_hides_no_end_of_a_vm() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd");
    let took = told_after(|dir, _| flood(dir));
    assert!(took < LATE, "{took:?}");
}

#[test]
fn the_end_of_a_vm_for_which_the_ring_had_no_room_is_told() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd");
    let took = told_after(|dir, other| {
        flood(dir);
        plug_often(other);
    });
    assert!(took < LATE, "{took:?}");
}

#[test]
fn a_vmm_that_turns_to_io_submit_while_the_ring_is_full_is_not_shown_as_idle() {
    require!("ebpf", "kvm", "snmpd", "root");
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    raw(&image);
    let stage = Stage::new();
    let mut other = TinyGuest::start(&["--name", "other", "--duty", "idle"]).unwrap();
    let mut vmm = Vmm::start(image.to_str().unwrap());
    stage.wait_for_vm(other.pid(), 1);
    let pid = vmm.pid();
    let disk = |stage: &Stage| stage.vm("pid", pid)?["disks"].get(0).cloned();
    let wait = |stage: &Stage, what: &str, is_wanted: &dyn Fn(&serde_json::Value) -> bool| {
        let found = wait_until(PATIENCE, what, || disk(stage).filter(is_wanted));
        found.unwrap_or_else(|error| panic!("{error}: {:?}\n{}", disk(stage), stage.agent.log()))
    };
    wait(&stage, "the disk is counted", &|disk| disk["counted_by"] == "syscall");
    stage.agent.child().unwrap().stop().unwrap();
    flood(dir.path());
    plug_often(&mut other);
    vmm.order("submit");
    stage.agent.child().unwrap().go_on().unwrap();
    wait(&stage, "its other way is known", &|disk| disk["counted_by"] != "syscall");
    assert!(stage.status()["probe"]["events_lost"].as_u64().unwrap() > 0);
}

//! VMs without libvirt that are paused, with QEMU and a small guest.

use std::path::Path;

use crate::lab::{
    stage::Stage,
    traps::{notifications, wait_for},
};
use rustix::process::Signal;
use xtask::lab::{Accelerator, PATIENCE, Qemu, Qmp, Snmptrapd, TinyGuest, Way, wait_until};

const ADMIN_STATE: &[u32] = &[4, 1, 5];
const OPER_STATE: &[u32] = &[4, 1, 6];
const RUNNING: (u64, u64) = (1, 4);
const PAUSED: u64 = 8;

/// Waits for vmAdminState and vmOperState of a VM.
fn wait(stage: &mut Stage, index: u32, admin: u64, oper: u64) {
    stage.wait_for("the state", OPER_STATE, &[index], |state| state == Some(oper));
    assert_eq!(stage.number(ADMIN_STATE, &[index]), Some(admin));
}

/// A QEMU with its monitor.
fn qemu(name: &str, accelerator: Accelerator, more: &[&str], dir: &Path) -> (Qemu, Qmp) {
    let socket = dir.join(name);
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let options = [&["-qmp", &monitor][..], more].concat();
    let qemu = Qemu::start(name, accelerator, &options).unwrap();
    let qmp = Qmp::connect(&socket).unwrap();
    (qemu, qmp)
}

#[test]
fn a_vm_is_paused_while_none_of_its_vcpus_may_run() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let sinks = snmptrapd.sinks(&[Way::Trap]);
    let mut stage = Stage::configured("", &sinks, "[notifications]\nper_vm = true\n");
    let (stopped, mut monitor) =
        qemu("stopped", Accelerator::Kvm, &["-S", "-smp", "2"], dir.path());
    let index = stage.wait_for_vm(stopped.child.pid(), 2);
    // Started by its user to be paused.
    wait(&mut stage, index, 3, PAUSED);
    for _ in 0..2 {
        monitor.execute(r#"{"execute":"cont"}"#).unwrap();
        wait(&mut stage, index, RUNNING.0, RUNNING.1);
        monitor.execute(r#"{"execute":"stop"}"#).unwrap();
        // It may have done so by itself.
        wait(&mut stage, index, RUNNING.0, PAUSED);
        monitor.monitor("info registers -a").unwrap();
    }
    // An agent that finds it so.
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    wait(&mut stage, index, RUNNING.0, PAUSED);
    monitor.execute(r#"{"execute":"cont"}"#).unwrap();
    wait(&mut stage, index, RUNNING.0, RUNNING.1);
    let received = notifications(&wait_for(&snmptrapd, Way::Trap, 6, &stage));
    let numbers: Vec<_> = received.iter().filter_map(|line| line.split(':').next()).collect();
    // vmPaused is 4, vmRunning 1.
    assert_eq!(numbers, ["4", "1", "4", "1", "4", "1"], "{}", stage.agent.log());
}

#[test]
fn a_vm_that_halts_or_works_is_not_paused_but_one_with_a_stopped_process_is() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::new();
    let guests: Vec<TinyGuest> = ["idle", "busy", "half"]
        .iter()
        .map(|duty| TinyGuest::start(&["--vcpus", "2", "--duty", duty]).unwrap())
        .collect();
    let (emulated, mut monitor) = qemu("emulated", Accelerator::Tcg, &[], dir.path());
    let index = stage.wait_for_vm(emulated.child.pid(), 1);
    let without_names = ["-name", "debug-threads=off"];
    let (emulated_unnamed, _) = qemu("unnamed", Accelerator::Tcg, &without_names, dir.path());
    let unnamed = stage.wait_for_vm(emulated_unnamed.child.pid(), 0);
    let indexes: Vec<u32> = guests.iter().map(|guest| stage.wait_for_vm(guest.pid(), 2)).collect();
    let before = stage.status()["notifications"]["changes"].as_u64().unwrap();
    for (guest, index) in guests.iter().zip(indexes) {
        assert_eq!(stage.number(OPER_STATE, &[index]), Some(RUNNING.1));
        guest.child.signal(Signal::STOP).unwrap();
        wait(&mut stage, index, 3, PAUSED);
        guest.child.signal(Signal::CONT).unwrap();
        wait(&mut stage, index, RUNNING.0, RUNNING.1);
    }
    // Without KVM only a stopped process tells, and the status says so.
    monitor.execute(r#"{"execute":"stop"}"#).unwrap();
    let vm = wait_until(PATIENCE, "its gap", || {
        stage.vm("index", index).filter(|vm| !vm["gaps"].as_array().unwrap().is_empty())
    })
    .unwrap();
    assert_eq!(vm["gaps"][0], "whether it is paused is not known: it does not use KVM");
    assert_eq!(stage.number(OPER_STATE, &[index]), Some(RUNNING.1));
    monitor.execute(r#"{"execute":"cont"}"#).unwrap();
    emulated.child.signal(Signal::STOP).unwrap();
    wait(&mut stage, index, RUNNING.0, PAUSED);
    emulated.child.signal(Signal::CONT).unwrap();
    wait(&mut stage, index, RUNNING.0, RUNNING.1);
    // Nor is it known which threads run the vCPUs.
    emulated_unnamed.child.signal(Signal::STOP).unwrap();
    wait(&mut stage, unnamed, RUNNING.0, PAUSED);
    emulated_unnamed.child.signal(Signal::CONT).unwrap();
    wait(&mut stage, unnamed, RUNNING.0, RUNNING.1);
    let changes = stage.status()["notifications"]["changes"].as_u64().unwrap() - before;
    // Five are paused, and run again.
    assert_eq!(changes, 10, "{}", stage.agent.log());
}

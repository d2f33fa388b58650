//! VMs that start, change and end, as a manager sees them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use crate::lab::stage::{Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, VM_CUR_CPU_NUMBER, VM_NUMBER};
use xtask::lab::{Accelerator, Qemu, TinyGuest, missing};

/// Limit for a VM's start or end to be served.
const SOON: Duration = Duration::from_millis(200);

#[test]
fn a_vm_that_starts_or_ends_is_seen_soon() {
    require!("ebpf", "kvm", "snmpd");
    TinyGuest::build().unwrap();
    let mut stage = Stage::new();
    assert_eq!(stage.number(VM_NUMBER, &[]), Some(0));
    for round in 0..5 {
        let start = Instant::now();
        let mut guest = TinyGuest::start(&["--vcpus", "2", "--duty", "half"]).unwrap();
        stage.wait_for("the VM is there", VM_NUMBER, &[], |number| number == Some(1));
        // No index is given again within a minute.
        let index = round + 1;
        let name = [index, 2];
        stage.wait_for("its vCPUs are there", VM_CPU_CORE_TIME, &name, |time| time.is_some());
        let seen = start.elapsed();
        assert!(seen < SOON, "round {round}: start seen after {seen:?}\n{}", stage.agent.log());

        let end = Instant::now();
        guest.child.kill();
        stage.wait_for("the VM is gone", VM_NUMBER, &[], |number| number == Some(0));
        let seen = end.elapsed();
        assert!(seen < SOON, "round {round}: end seen after {seen:?}\n{}", stage.agent.log());
        assert_eq!(stage.number(VM_CPU_TIME, &[index]), None);
    }
    assert_eq!(stage.status()["sources"][0]["rescans"], 1, "one scan, at the start");
}

#[test]
fn vcpus_come_and_go() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let mut guest = TinyGuest::start(&["--vcpus", "1", "--duty", "half"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 1);
    for round in 0..3 {
        let before = Instant::now();
        guest.add_vcpu().unwrap();
        stage.wait_for("a second vCPU", VM_CPU_CORE_TIME, &[index, 2], |time| time.is_some());
        assert!(before.elapsed() < SOON, "round {round}: {:?}", before.elapsed());
        assert_eq!(stage.number(VM_CUR_CPU_NUMBER, &[index]), Some(2));

        let before = Instant::now();
        guest.remove_vcpu().unwrap();
        stage.wait_for("one vCPU", VM_CUR_CPU_NUMBER, &[index], |number| number == Some(1));
        assert!(before.elapsed() < SOON, "round {round}: {:?}", before.elapsed());
        assert_eq!(stage.number(VM_CPU_CORE_TIME, &[index, 2]), None);
    }
}

#[test]
fn vcpus_without_a_name_are_found_by_what_they_do() {
    require!("ebpf", "kvm", "snmpd");
    let stage = Stage::new();
    let guest =
        TinyGuest::start(&["--vcpus", "3", "--duty", "busy,half,idle", "--unnamed"]).unwrap();
    stage.wait_for_vm(guest.pid(), 3);
}

#[test]
fn a_vm_that_a_second_thread_makes_is_seen_soon() {
    require!("ebpf", "kvm", "snmpd");
    TinyGuest::build().unwrap();
    let mut stage = Stage::new();
    let start = Instant::now();
    let mut guest =
        TinyGuest::start(&["--vcpus", "2", "--duty", "half", "--vmm-thread", "--unnamed"]).unwrap();
    stage.wait_for("its vCPUs are there", VM_CPU_CORE_TIME, &[1, 2], |time| time.is_some());
    assert!(start.elapsed() < SOON, "seen after {:?}\n{}", start.elapsed(), stage.agent.log());
    guest.child.kill();
    stage.wait_for("the VM is gone", VM_NUMBER, &[], |number| number == Some(0));
}

#[test]
fn vms_that_run_before_the_agent_are_found() {
    require!("ebpf", "kvm", "snmpd");
    let guest =
        TinyGuest::start(&["--vcpus", "2", "--duty", "busy,idle", "--name", "early"]).unwrap();
    let stage = Stage::new();
    stage.wait_for_vm(guest.pid(), 2);
    assert_eq!(stage.status()["vms"][0]["name"], "early");
}

#[test]
fn qemu_is_found_with_kvm_and_without() {
    require!("ebpf", "snmpd", "qemu");
    let mut stage = Stage::new();
    let uuid = "8b1a6a3c-5d0e-4a52-9c36-0d6c5f3a7e10";
    let images = tempfile::tempdir().unwrap();
    let image = images.path().join("disk.raw");
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut guests = Vec::new();
    let accelerators = match missing("kvm") {
        None => vec![Accelerator::Kvm, Accelerator::Tcg],
        Some(_) => vec![Accelerator::Tcg],
    };
    for accelerator in accelerators {
        let name = format!("{accelerator:?}");
        let drive = format!("file={},format=raw,if=virtio,readonly=on", image.display());
        let options = ["-smp", "2", "-uuid", uuid, "-drive", &drive];
        // Two VMs with the same UUID: both are served, and the first shows it.
        let qemu = Qemu::start(&name, accelerator, &options).unwrap();
        let index = stage.wait_for_vm(qemu.child.pid(), 2);
        let vm = stage.status()["vms"].as_array().unwrap().clone();
        let vm = vm.iter().find(|vm| vm["index"] == index).unwrap();
        let shown = Some(uuid).filter(|_| guests.is_empty());
        assert_eq!((vm["name"].as_str(), vm["uuid"].as_str()), (Some(&*name), shown));
        // One disk: raw(4), readonly(3), 8 MiB.
        let disk = [index, 1];
        stage.wait_for("its disk", &[7, 1, 11], &disk, |size| size == Some(8192));
        assert_eq!(stage.number(&[7, 1, 4], &disk), Some(4));
        assert_eq!(stage.number(&[7, 1, 7], &disk), Some(3));
        stage.wait_for("its CPU time", VM_CPU_TIME, &[index], |time| time > Some(0));
        guests.push(qemu);
    }
    drop(guests);
    stage.wait_for("all have ended", VM_NUMBER, &[], |number| number == Some(0));
}

#[test]
fn a_qemu_in_the_background_is_found() {
    require!("ebpf", "snmpd", "qemu");
    let mut stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let pid_file = dir.path().join("pid");
    let started = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg", "-nodefaults", "-display", "none", "-m", "64", "-daemonize"])
        .args(["-name", "background,debug-threads=on", "-pidfile"])
        .arg(&pid_file)
        .status()
        .unwrap();
    assert!(started.success());
    let pid = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let _guard = Kill(pid);
    stage.wait_for_vm(pid.unsigned_abs(), 1);
    stage.wait_for("the one that started it is gone", VM_NUMBER, &[], |number| number == Some(1));
}

#[test]
fn without_btf_vms_are_served_and_only_their_counters_are_absent() {
    require!("kvm", "snmpd");
    let mut stage = Stage::with(|agent| agent.set("KVMETER_BTF", "/nonexistent/vmlinux"));
    let guest = TinyGuest::start(&["--vcpus", "2", "--duty", "busy"]).unwrap();
    stage.wait_for("the VM is there", VM_NUMBER, &[], |number| number == Some(1));
    let index = stage.index_of(guest.pid()).unwrap();
    stage.wait_for("its vCPUs", VM_CUR_CPU_NUMBER, &[index], |number| number == Some(2));
    assert_eq!(stage.number(VM_CPU_TIME, &[index]), None);
    assert_eq!(stage.number(VM_CPU_CORE_TIME, &[index, 1]), None);
    let status = stage.status();
    assert_eq!(status["probe"]["mode"], "degraded");
    let why = status["probe"]["hooks"][0]["why"].as_str().unwrap();
    assert!(why.contains("CONFIG_DEBUG_INFO_BTF"), "{why}");
    drop(guest);
    stage.wait_for("the VM is gone", VM_NUMBER, &[], |number| number == Some(0));
}

/// Kills a process that is not a child when dropped.
struct Kill(i32);

impl Drop for Kill {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.0) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

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
        let vm = stage.vm("index", index).unwrap();
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

#[test]
fn a_btf_with_a_new_kind_of_type_wants_a_newer_kvmeter_wherever_it_is_told() {
    require!("kvm", "snmpd");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("btf");
    let mut btf = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    make_newer(&mut btf);
    fs::write(&path, btf).unwrap();
    let stage = Stage::with(|agent| agent.set("KVMETER_BTF", path.to_str().unwrap()));
    let why = stage.status()["probe"]["hooks"][0]["why"].as_str().unwrap().to_owned();
    let check = stage.agent.ask("check", &["--json"]).unwrap();
    let check: serde_json::Value = serde_json::from_slice(&check.stdout).unwrap();
    let checks = check["checks"].as_array().unwrap();
    let hooks = checks.iter().find(|check| check["name"] == "hooks").unwrap();
    let told =
        format!("{}. Fix: {}", hooks["found"].as_str().unwrap(), hooks["fix"].as_str().unwrap());
    assert_eq!(why, told);
    assert!(why.contains("is newer than this kvmeter") && why.contains("a newer kvmeter"), "{why}");
    assert!(!why.contains("5.15"), "{why}");
    assert!(stage.agent.log().contains(&why), "{}", stage.agent.log());
}

/// Gives one type of kind `FLOAT`, behind which there is no data, a kind that no version knows.
fn make_newer(btf: &mut [u8]) {
    const FLOAT: u32 = 16;
    let word = |btf: &[u8], at: usize| u32::from_le_bytes(btf[at..at + 4].try_into().unwrap());
    let mut at = (word(btf, 4) + word(btf, 8)) as usize;
    loop {
        let info = word(btf, at + 4);
        let (kind, count) = (info >> 24 & 31, info as usize & 0xffff);
        if kind == FLOAT {
            let newer = info & !(31 << 24) | 20 << 24;
            btf[at + 4..at + 8].copy_from_slice(&newer.to_le_bytes());
            return;
        }
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
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

//! Domains of a real libvirtd, private to this test: what a manager sees against what virsh says, and what
//! remains when the daemon hangs or goes away.

#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use kvmeter::inventory::OperState;
use lab::stage::{Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, VM_NUMBER};
use rustix::process::Signal;
use tempfile::TempDir;
use xtask::lab::{Libvirtd, PATIENCE, missing, wait_until};

const VM_OPER_STATE: &[u32] = &[4, 1, 6];
const VM_MEM_UNIT: &[u32] = &[4, 1, 12];
const VM_MAX_MEM: &[u32] = &[4, 1, 15];
const SOURCE_TYPE: &[u32] = &[7, 1, 4];
const ACCESS: &[u32] = &[7, 1, 7];
const MEDIA_TYPE: &[u32] = &[7, 1, 8];
const SIZE_UNIT: &[u32] = &[7, 1, 10];
const DEFINED_SIZE: &[u32] = &[7, 1, 11];
const ALLOCATED_SIZE: &[u32] = &[7, 1, 12];

/// libvirt is back, or its change is there.
const SOON: Duration = Duration::from_secs(2);

struct Host {
    stage: Stage,
    libvirtd: Libvirtd,
    images: TempDir,
    _dir: TempDir,
}

impl Host {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let libvirtd = Libvirtd::start(dir.path()).unwrap();
        let stage = Stage::of_libvirt(&libvirtd.uri_read_only());
        let host = Self { stage, libvirtd, images: tempfile::tempdir().unwrap(), _dir: dir };
        host.wait_for_source("live", |source| source["state"] == "live");
        host
    }

    fn source(&self) -> serde_json::Value {
        self.stage.status()["sources"][1].clone()
    }

    fn wait_for_source(&self, what: &str, is_so: impl Fn(&serde_json::Value) -> bool) -> Duration {
        let start = Instant::now();
        wait_until(PATIENCE, what, || is_so(&self.source()).then_some(())).unwrap_or_else(
            |error| panic!("{error}\n{}\n{}", self.source(), self.stage.agent.log()),
        );
        start.elapsed()
    }

    fn image(&self, name: &str, options: &[&str], size: &str) -> String {
        let path = self.images.path().join(name).to_str().unwrap().to_owned();
        let made = Command::new("qemu-img")
            .args(["create", "-q"])
            .args(options)
            .args([&path, size])
            .status()
            .unwrap();
        assert!(made.success());
        path
    }

    /// The vmIndex of a domain, once it is served.
    fn index(&self, uuid: &str) -> u32 {
        wait_until(PATIENCE, "the domain is served", || {
            let vms = self.stage.status()["vms"].as_array().unwrap().clone();
            let vm = vms.iter().find(|vm| vm["uuid"] == uuid)?;
            u32::try_from(vm["index"].as_u64()?).ok()
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.stage.agent.log()))
    }

    fn wait_for_state(&mut self, index: u32, state: OperState) {
        let state = u64::from((state as i32).unsigned_abs());
        self.stage.wait_for("the state", VM_OPER_STATE, &[index], |seen| seen == Some(state));
    }
}

fn uuid(number: u32) -> String {
    format!("0a0a0a0a-0000-4000-8000-{number:012}")
}

/// A domain of this name with these devices; KVM where the machine has it.
fn domain(name: &str, number: u32, more: &str, devices: &str) -> String {
    let kind = if missing("kvm").is_none() { "kvm" } else { "qemu" };
    format!(
        "<domain type='{kind}'><name>{name}</name><uuid>{uuid}</uuid>\
         <memory unit='MiB'>64</memory>{more}<os><type arch='x86_64' machine='pc'>hvm</type></os>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}</devices></domain>",
        uuid = uuid(number)
    )
}

fn disk(kind: &str, device: &str, format: &str, source: &str, target: &str, more: &str) -> String {
    format!(
        "<disk type='{kind}' device='{device}'><driver name='qemu' type='{format}'/>{source}\
         <target dev='{target}'/>{more}</disk>"
    )
}

/// The number after this word in what virsh prints.
fn said(text: &str, word: &str) -> u64 {
    let line = text.lines().find(|line| line.contains(word)).unwrap();
    line.split_whitespace().find_map(|word| word.parse().ok()).unwrap()
}

#[test]
fn domains_of_all_kinds_are_served_as_virsh_has_them() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    let base = host.image("base.qcow2", &["-f", "qcow2"], "3G");
    let overlay = host.image("overlay.qcow2", &["-f", "qcow2", "-b", &base, "-F", "qcow2"], "5G");
    let raw = host.image("raw.img", &["-f", "raw"], "8M");
    let file = |path: &str| format!("<source file='{path}'/>");
    let name = "ä".repeat(60);
    host.libvirtd
        .define(&domain(
            &name,
            1,
            "<vcpu current='2'>4</vcpu>",
            &[
                disk("file", "disk", "qcow2", &file(&overlay), "vda", ""),
                disk("file", "disk", "raw", &file(&raw), "vdb", "<readonly/>"),
                disk("file", "cdrom", "raw", "", "hda", "<readonly/>"),
                disk("file", "floppy", "raw", &file(&raw), "fda", "<readonly/>"),
                "<interface type='user'><mac address='52:54:00:01:02:03'/><model type='virtio'/></interface>"
                    .to_owned(),
            ]
            .concat(),
        ))
        .unwrap();
    let index = host.index(&uuid(1));
    host.wait_for_state(index, OperState::Shutdown);
    assert_eq!(
        host.stage.number(VM_CPU_TIME, &[index]),
        Some(0),
        "counters of a VM that is off are 0"
    );
    assert_eq!(host.stage.number(VM_CPU_CORE_TIME, &[index, 1]), Some(0));

    host.libvirtd.virsh(&["start", &uuid(1)]).unwrap();
    host.wait_for_state(index, OperState::Running);
    host.stage.wait_for("vCPUs are counted", VM_CPU_CORE_TIME, &[index, 2], |time| time > Some(0));
    assert_eq!(
        host.stage.number(VM_CPU_CORE_TIME, &[index, 3]),
        None,
        "two of four are plugged in"
    );
    let dominfo = host.libvirtd.virsh(&["dominfo", &uuid(1)]).unwrap();
    assert_eq!(host.stage.number(&[4, 1, 9], &[index]), Some(said(&dominfo, "CPU(s)")));
    assert_eq!(host.stage.number(VM_MAX_MEM, &[index]), Some(said(&dominfo, "Max memory")));
    assert_eq!(host.stage.number(VM_MEM_UNIT, &[index]), Some(1024));

    // hda, fda, vda and vdb, in the order in which the description has them.
    let disks = host.stage.status()["vms"][0]["disks"].as_array().unwrap().clone();
    let disk = |target: &str| {
        let disk = disks.iter().find(|disk| disk["target"] == target).unwrap();
        u32::try_from(disk["index"].as_u64().unwrap()).unwrap()
    };
    for (target, source, access, media) in
        [("vda", 5, 2, 3), ("vdb", 4, 3, 3), ("hda", 1, 3, 4), ("fda", 4, 3, 5)]
    {
        let at = [index, disk(target)];
        assert_eq!(host.stage.number(SOURCE_TYPE, &at), Some(source), "{target}");
        assert_eq!(host.stage.number(ACCESS, &at), Some(access), "{target}");
        assert_eq!(host.stage.number(MEDIA_TYPE, &at), Some(media), "{target}");
    }
    for target in ["vda", "vdb"] {
        let at = [index, disk(target)];
        host.stage.wait_for("the size of a disk", DEFINED_SIZE, &at, |size| {
            size.is_some_and(|size| size < 1 << 31)
        });
        let info = host.libvirtd.virsh(&["domblkinfo", &uuid(1), target]).unwrap();
        let unit = host.stage.number(SIZE_UNIT, &at).unwrap();
        assert_eq!(host.stage.number(DEFINED_SIZE, &at), Some(said(&info, "Capacity") / unit));
        let allocated = if target == "vda" { "Allocation" } else { "Capacity" };
        assert_eq!(host.stage.number(ALLOCATED_SIZE, &at), Some(said(&info, allocated) / unit));
    }

    host.libvirtd.virsh(&["suspend", &uuid(1)]).unwrap();
    host.wait_for_state(index, OperState::Paused);
    host.libvirtd.virsh(&["resume", &uuid(1)]).unwrap();
    host.wait_for_state(index, OperState::Running);
    host.libvirtd.virsh(&["destroy", &uuid(1)]).unwrap();
    host.wait_for_state(index, OperState::Shutdown);

    // Larger than Integer32 in KiB: 3 TiB and 40 TiB are told in MiB.
    let large = host.image("large.qcow2", &["-f", "qcow2"], "40T");
    let large_domain = domain(
        "large",
        2,
        "<vcpu>1</vcpu>",
        &crate::disk("file", "disk", "qcow2", &format!("<source file='{large}'/>"), "vda", ""),
    )
    .replace("<memory unit='MiB'>64</memory>", "<memory unit='TiB'>3</memory>");
    host.libvirtd.define(&large_domain).unwrap();
    let large = host.index(&uuid(2));
    assert_eq!(host.stage.number(VM_MEM_UNIT, &[large]), Some(1 << 20));
    assert_eq!(host.stage.number(VM_MAX_MEM, &[large]), Some(3 << 20));
    host.stage.wait_for("40 TiB", DEFINED_SIZE, &[large, 1], |size| size == Some(40 << 20));
    assert_eq!(host.stage.number(SIZE_UNIT, &[large, 1]), Some(1 << 20));

    for number in [1, 2] {
        host.libvirtd.virsh(&["undefine", &uuid(number)]).unwrap();
    }
    host.stage.wait_for("all are gone", VM_NUMBER, &[], |number| number == Some(0));
}

#[test]
fn a_libvirt_that_hangs_or_goes_away_costs_no_counter() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    host.libvirtd.define(&domain("steady", 3, "<vcpu>1</vcpu>", "")).unwrap();
    host.libvirtd.virsh(&["start", &uuid(3)]).unwrap();
    let index = host.index(&uuid(3));
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
    assert!(back < SOON, "seen after {back:?}");

    host.libvirtd.end();
    host.wait_for_source("it is gone", |source| {
        source["state"] != "live" && source["stale_since"].is_u64()
    });
    counts_on(&mut host);
    assert_eq!(host.stage.number(VM_NUMBER, &[]), Some(1));
    host.libvirtd.begin().unwrap();
    let back = host.wait_for_source("it is back", |source| source["state"] == "live");
    assert!(back < SOON, "seen after {back:?}");
    counts_on(&mut host);
    assert_eq!(host.index(&uuid(3)), index);

    // Without the agent, too, the index stays; and the VM is found with its counters.
    let before = host.stage.number(VM_CPU_TIME, &[index]).unwrap();
    host.stage.agent.end().unwrap();
    host.stage.agent.start().unwrap();
    assert_eq!(host.index(&uuid(3)), index);
    host.stage.wait_for("it is counted", VM_CPU_TIME, &[index], |time| time > Some(before));

    host.libvirtd.virsh(&["destroy", &uuid(3)]).unwrap();
    host.wait_for_state(index, OperState::Shutdown);
}

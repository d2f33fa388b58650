//! What is served about the domains of a private libvirtd while one of them hangs, and when they change.

use std::time::Instant;

use crate::lab::{
    libvirt::{self, Host, disk, domain, uuid},
    stage::{VM_CPU_CORE_TIME, VM_CPU_TIME, VM_CUR_CPU_NUMBER},
};
use kvmeter::inventory::{AutoStart, OperState};
use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{PATIENCE, wait_until};

const VM_AUTO_START: &[u32] = &[4, 1, 7];
const MEDIA_TYPE: &[u32] = &[7, 1, 8];
const READ_IOS: &[u32] = &[7, 1, 13];
const VM_NETWORK_PARENT: &[u32] = &[8, 1, 3];

#[test]
fn a_domain_that_hangs_costs_only_what_is_unknown_of_it() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    let image = host.image("stuck.img", &["-f", "raw"], "4M");
    let disk = disk("file", "disk", "raw", &format!("<source file='{image}'/>"), "vda", "");
    host.libvirtd.define(&domain("stuck", 4, "<vcpu>1</vcpu>", &disk)).unwrap();
    host.libvirtd.virsh(&["start", &uuid(4)]).unwrap();
    let stuck = host.stage.index_by_uuid(&uuid(4));
    // Polled together with the domain that will hang.
    let image = host.image("fine.img", &["-f", "raw"], "4M");
    let fine =
        libvirt::disk("file", "disk", "raw", &format!("<source file='{image}'/>"), "vda", "");
    host.libvirtd.define(&domain("fine", 8, "<vcpu>1</vcpu>", &fine)).unwrap();
    host.libvirtd.virsh(&["start", &uuid(8)]).unwrap();
    let fine = host.stage.index_by_uuid(&uuid(8));
    host.stage.wait_for("its I/O is counted", READ_IOS, &[fine, 1], |reads| reads.is_some());
    host.stage.wait_for("its I/O is counted", READ_IOS, &[stuck, 1], |reads| reads.is_some());
    let qemu = Pid::from_raw(host.libvirtd.pid("stuck").unwrap().cast_signed()).unwrap();
    kill_process(qemu, Signal::STOP).unwrap();
    // A change with an event of libvirt, after which the disk sizes are refreshed.
    host.libvirtd.virsh(&["desc", &uuid(4), "--live", "--new-desc", "it hangs"]).unwrap();
    wait_until(PATIENCE, "a question for its disks waits", || {
        let control = host.libvirtd.virsh(&["domcontrol", &uuid(4)]).unwrap();
        control.starts_with("occupied").then_some(())
    })
    .unwrap();

    // Meanwhile the disks and changes of other domains, and the hung domain's own counters, are served as before.
    let before = host.stage.number(READ_IOS, &[fine, 1]);
    let request = "qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend \"aio_read 0 4k\"";
    host.libvirtd.virsh(&["qemu-monitor-command", &uuid(8), "--hmp", request]).unwrap();
    host.stage.wait_for("it is counted on", READ_IOS, &[fine, 1], |reads| reads > before);
    let start = Instant::now();
    host.libvirtd.define(&domain("other", 5, "<vcpu>1</vcpu>", "")).unwrap();
    let other = host.stage.index_by_uuid(&uuid(5));
    host.libvirtd.virsh(&["start", &uuid(5)]).unwrap();
    host.wait_for_state(other, OperState::Running);
    assert!(start.elapsed() < PATIENCE, "seen after {:?}", start.elapsed());
    assert_eq!(host.source()["state"], "live");
    assert!(host.stage.number(READ_IOS, &[stuck, 1]).is_some());
    assert!(host.stage.number(VM_CPU_TIME, &[stuck]) > Some(0));
    host.wait_for_state(stuck, OperState::Running);

    // Also for an agent that starts now.
    let before = host.stage.number(READ_IOS, &[stuck, 1]);
    host.stage.agent.end().unwrap();
    host.stage.agent.start().unwrap();
    host.wait_for_source("live", |source| source["state"] == "live");
    assert_eq!(host.stage.index_by_uuid(&uuid(4)), stuck);
    host.wait_for_state(stuck, OperState::Running);
    assert_eq!(host.stage.number(READ_IOS, &[stuck, 1]), before);
    host.stage.wait_for("the other is counted", VM_CPU_TIME, &[other], |time| time > Some(0));

    kill_process(qemu, Signal::CONT).unwrap();
    host.libvirtd.virsh(&["qemu-monitor-command", &uuid(4), "--hmp", request]).unwrap();
    host.stage.wait_for("its disk is counted on", READ_IOS, &[stuck, 1], |reads| reads > before);
}

#[test]
fn a_change_without_an_event_of_libvirt_is_seen_in_its_files() {
    require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::with_its_files();
    host.libvirtd.define(&domain("boots", 6, "<vcpu current='1'>3</vcpu>", "")).unwrap();
    let index = host.stage.index_by_uuid(&uuid(6));
    for (arguments, auto_start) in [
        (&["autostart"][..], AutoStart::Enabled),
        (&["autostart", "--disable"], AutoStart::Disabled),
    ] {
        host.libvirtd.virsh(&[arguments, &[&uuid(6)]].concat()).unwrap();
        let is_so = |seen| seen == Some(u64::from((auto_start as i32).unsigned_abs()));
        host.stage.wait_for("vmAutoStart", VM_AUTO_START, &[index], is_so);
    }
    host.libvirtd.virsh(&["setvcpus", &uuid(6), "2", "--config"]).unwrap();
    host.stage
        .wait_for("vCPUs of the next start", VM_CUR_CPU_NUMBER, &[index], |cpus| cpus == Some(2));
    host.libvirtd.virsh(&["start", &uuid(6)]).unwrap();
    host.wait_for_state(index, OperState::Running);
    host.libvirtd.virsh(&["managedsave", &uuid(6)]).unwrap();
    host.wait_for_state(index, OperState::Suspended);
    host.libvirtd.virsh(&["managedsave-remove", &uuid(6)]).unwrap();
    host.wait_for_state(index, OperState::Shutdown);
}

#[test]
fn what_is_plugged_in_and_out_leaves_the_indexes_of_others() {
    require!("ebpf", "kvm", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    let file = |path: String| format!("<source file='{path}'/>");
    let device = |name: &str, xml: String| {
        let path = host.images.path().join(name);
        std::fs::write(&path, xml).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let image = |name: &str| file(host.image(name, &["-f", "raw"], "4M"));
    let first = disk("file", "disk", "raw", &image("a.img"), "vda", "");
    let second = disk("file", "disk", "raw", &image("b.img"), "vdb", "");
    let nic = |number: u32| {
        format!(
            "<interface type='user'><mac address='52:54:00:00:01:{number:02x}'/>\
             <model type='virtio'/></interface>"
        )
    };
    let disk_file = device("disk.xml", disk("file", "disk", "raw", &image("c.img"), "vdc", ""));
    let nic_file = device("nic.xml", nic(2));
    let vcpus = "<vcpu current='1'>3</vcpu><features><acpi/></features>";
    host.libvirtd.define(&domain("plugs", 7, vcpus, &[first, second, nic(1)].concat())).unwrap();
    host.libvirtd.virsh(&["start", &uuid(7)]).unwrap();
    let vm = host.stage.index_by_uuid(&uuid(7));
    host.stage.wait_for("the first vCPU", VM_CPU_CORE_TIME, &[vm, 1], |time| time > Some(0));
    let change = |host: &Host, command: &[&str]| {
        let uuid = uuid(7);
        let arguments = [&[command[0], &*uuid], &command[1..]].concat();
        host.libvirtd.virsh(&arguments).unwrap();
    };
    let there = |value: Option<u64>| value.is_some();

    change(&host, &["setvcpus", "3", "--live"]);
    host.stage.wait_for("three vCPUs", VM_CUR_CPU_NUMBER, &[vm], |cpus| cpus == Some(3));
    host.stage.wait_for("the third", VM_CPU_CORE_TIME, &[vm, 3], |time| time > Some(0));
    change(&host, &["attach-device", &disk_file, "--live"]);
    host.stage.wait_for("the disk", MEDIA_TYPE, &[vm, 3], there);
    change(&host, &["attach-device", &nic_file, "--live"]);
    host.stage.wait_for("the interface", VM_NETWORK_PARENT, &[vm, 2], there);

    // This guest has no driver that would release a device, so QEMU removes it without the guest.
    change(&host, &["detach-disk", "vdb", "--config"]);
    change(&host, &["destroy"]);
    host.wait_for_state(vm, OperState::Shutdown);
    change(&host, &["start"]);
    host.wait_for_state(vm, OperState::Running);
    host.stage.wait_for("the second disk is gone", MEDIA_TYPE, &[vm, 2], |media| media.is_none());
    assert!(host.stage.number(MEDIA_TYPE, &[vm, 1]).is_some());
    change(&host, &["attach-device", &disk_file, "--live"]);
    host.stage.wait_for("the third has its old number", MEDIA_TYPE, &[vm, 3], there);
}

//! What looks like a VM and is none, and which number a vCPU has, with QEMU itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
};

use crate::lab::stage::{Stage, VM_CPU_CORE_TIME, VM_NUMBER, vm_in};
use xtask::lab::{Accelerator, Child, PATIENCE, Qemu, wait_until};

#[test]
fn questions_and_scripts_of_qemu_are_no_vms() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let mut stage = Stage::new();
    let changes = |stage: &Stage| stage.status()["notifications"]["changes"].as_u64().unwrap();
    for question in [&["-version"][..], &["-machine", "help"], &["-device", "help"]] {
        for _ in 0..3 {
            let asked = Command::new("qemu-system-x86_64").args(question).output().unwrap();
            assert!(asked.status.success());
        }
    }
    assert_eq!(changes(&stage), 0);
    // The child that is to execute the script has all that the VM has.
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("up");
    fs::write(&script, "#!/bin/sh\nsleep 0.2\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let script = script.to_str().unwrap();
    for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
        let before = changes(&stage);
        let net = format!("tap,id=n,ifname=kvmeter-up,script={script},downscript={script}");
        let options = ["-netdev", &net, "-device", "virtio-net-pci,netdev=n"];
        let qemu = Qemu::start("scripted", accelerator, &options).unwrap();
        stage.wait_for_vm(qemu.child.pid(), 1);
        stage.wait_for("one VM", VM_NUMBER, &[], |number| number == Some(1));
        drop(qemu);
        stage.wait_for("it has ended", VM_NUMBER, &[], |number| number == Some(0));
        // Running, shut down, deleted; a QEMU that is killed has crashed instead.
        assert_eq!(changes(&stage) - before, 3, "{}", stage.agent.log());
    }
}

#[test]
fn vcpus_have_the_numbers_of_their_vmm_in_a_topology_with_gaps() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let mut stage = Stage::new();
    let qemu = Qemu::start("gaps", Accelerator::Kvm, &["-smp", "6,sockets=2,cores=3"]).unwrap();
    let index = stage.wait_for_vm(qemu.child.pid(), 6);
    for vcpu in 1..=6 {
        stage.wait_for("its time", VM_CPU_CORE_TIME, &[index, vcpu], |time| time.is_some());
    }
    assert_eq!(stage.number(VM_CPU_CORE_TIME, &[index, 7]), None);
}

#[test]
fn a_program_that_looks_like_libvirts_daemon_and_keeps_its_vm_is_a_vm() {
    require!("ebpf", "kvm", "snmpd", "root");
    let stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let daemon = dir.path().join("libvirtd");
    fs::copy("/usr/bin/perl", &daemon).unwrap();
    // KVM_CREATE_VM and KVM_CREATE_VCPU of the kernel's kvm.h
    let vmm = "open K, '+<', '/dev/kvm' or die; my $vm = ioctl(K, 0xAE01, 0) or die; \
               open V, qq(+<&=$vm) or die; ioctl(V, 0xAE41, 0) or die; sleep 600";
    let mut command = Command::new(&daemon);
    command.args(["-e", vmm]).stdin(Stdio::null()).stdout(Stdio::null());
    let vmm = Child::start(&mut command).unwrap();
    wait_until(PATIENCE, "it is listed", || {
        vm_in(&stage.status(), "pid", vmm.pid()).is_some().then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()));
}

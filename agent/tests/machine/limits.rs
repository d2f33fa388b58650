//! Sizes of the tables of records: tables keep them while a VM is counted, and users have shares of the tables.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::Value;
use xtask::lab::{Child, PATIENCE, Qmp, wait_until};

use crate::lab::{
    sandbox::{check, counted, node, qemu_after, raw, temporary},
    stage::{Stage, VM_CPU_TIME, vm_in},
};

/// A user and group that nothing else has.
const USER: u32 = 64_123;

const READ_REQUESTS: &[u32] = &[7, 1, 13];

/// The size of each table, and the one of the configuration if that is another.
fn sizes(status: &Value) -> [Vec<Option<u64>>; 2] {
    let tables = status["probe"]["tables"].as_array().unwrap();
    ["size", "configured"].map(|key| tables.iter().map(|table| table[key].as_u64()).collect())
}

/// Starts a paused QEMU with a disk, and waits until the disk is counted. Returns its vmIndex and vmStorageIndex, too.
fn vm_with_disk(stage: &Stage, dir: &Path) -> (Child, Qmp, [u32; 2]) {
    raw(dir.join("disk"));
    let blockdev = node("d0", "file", dir.join("disk").to_str().unwrap());
    let devices = ["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d0,id=data"];
    let (qemu, qmp) = qemu_after(dir, ":", dir.join("qmp").to_str().unwrap(), &devices);
    let disk = counted(stage, qemu.pid(), "data");
    (qemu, qmp, disk)
}

#[test]
fn tables_keep_their_sizes_and_counts_while_a_vm_is_counted_and_are_made_anew_when_none_is() {
    require!("ebpf", "snmpd", "qemu", "root");
    const DEFAULT: [u64; 3] = [4095, 65_528, 4096];
    let dir = temporary();
    let mut stage = Stage::new();
    assert_eq!(sizes(&stage.status()), [DEFAULT.map(Some).to_vec(), vec![None; 3]]);
    let (mut qemu, mut qmp, disk) = vm_with_disk(&stage, dir.path());
    check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);
    let config = fs::read_to_string(stage.agent.config()).unwrap();
    for configured in [DEFAULT, [100, 1000, 512], [20_000, 65_528, 16_384]] {
        let requests = stage.number(READ_REQUESTS, &disk).unwrap();
        let time = stage.number(VM_CPU_TIME, &disk[..1]).unwrap();
        let [vms, threads, images] = configured;
        if vms == 100 {
            stage.agent.kill();
        } else {
            stage.agent.end().unwrap();
        }
        // The programs count without an agent, too.
        qmp.request("d0", "read 1M 64k").unwrap();
        let limits = format!("\n[limits]\nvms = {vms}\nthreads = {threads}\nimages = {images}\n");
        fs::write(stage.agent.config(), format!("{config}{limits}")).unwrap();
        stage.agent.start().unwrap();
        let status = stage.status();
        assert_eq!(status["probe"]["adopted"], true, "{}", stage.agent.log());
        let other = |(new, old): (u64, u64)| (new != old).then_some(new);
        let others = configured.into_iter().zip(DEFAULT).map(other).collect();
        assert_eq!(sizes(&status), [DEFAULT.map(Some).to_vec(), others]);
        let is_other = configured != DEFAULT;
        let warned = format!("of the configuration has {vms} VMs, {threads} threads and {images}");
        assert_eq!(stage.agent.log().contains(&warned), is_other, "{}", stage.agent.log());
        let text = stage.agent.ask("status", &[]).unwrap().stdout;
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.contains(&format!("configured: {vms} VM records")), is_other, "{text}");
        assert_eq!(counted(&stage, qemu.pid(), "data"), disk);
        assert_eq!(stage.number(READ_REQUESTS, &disk), Some(requests + 1), "{}", stage.agent.log());
        stage.wait_for("the CPU time goes on", VM_CPU_TIME, &disk[..1], |now| {
            now.is_some_and(|now| now >= time)
        });
        check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);
    }

    qemu.kill();
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    let status = stage.status();
    assert_eq!(status["probe"]["adopted"], false, "{}", stage.agent.log());
    let configured = [20_000, 65_528, 16_384].map(Some).to_vec();
    assert_eq!(sizes(&status), [configured, vec![None; 3]]);
    let again = temporary();
    let (qemu, mut qmp, _) = vm_with_disk(&stage, again.path());
    check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);
}

/// A process of the user with a VM of KVM.
fn vm_of_user() -> Child {
    // KVM_CREATE_VM and KVM_CREATE_VCPU of the kernel's kvm.h
    let vmm = "open K, q(+<&=3) or die; my $vm = ioctl(K, 0xAE01, 0) or die; open V, qq(+<&=$vm) or die; \
               ioctl(V, 0xAE41, 0) or die; sleep 600";
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "exec setpriv --reuid $0 --regid $0 --clear-groups --pdeathsig KILL perl -e \"$1\" 3<>/dev/kvm",
        &USER.to_string(),
        vmm,
    ]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Child::start(&mut command).unwrap()
}

#[test]
fn a_user_has_a_share_and_what_went_without_is_counted_when_records_are_free() {
    require!("ebpf", "kvm", "snmpd", "qemu", "root");
    let stage = Stage::configured("", "", "[limits]\nvms = 16\nthreads = 512\n");
    let mut vms: Vec<Child> = (0..7).map(|_| vm_of_user()).collect();
    let pids: Vec<u32> = vms.iter().map(Child::pid).collect();
    let counted_of = |status: &Value, pids: &[u32]| {
        let is_counted =
            |pid: &u32| vm_in(status, "pid", *pid).is_some_and(|vm| !vm["cpu_ns"].is_null());
        pids.iter().filter(|pid| is_counted(pid)).count()
    };
    let refused = |status: &Value| {
        let refused = &status["probe"]["tables"][0]["refused"][0];
        (refused["user"].as_u64(), refused["vms"].as_u64())
    };
    wait_until(PATIENCE, "the user has four of sixteen records", || {
        let status = stage.status();
        let (user, count) = refused(&status);
        (user == Some(u64::from(USER)) && count == Some(3)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()));
    assert_eq!(counted_of(&stage.status(), &pids), 4);

    // Root's VM is counted.
    let dir = temporary();
    let socket = dir.path().join("qmp");
    let (qemu, _qmp) = qemu_after(dir.path(), ":", socket.to_str().unwrap(), &[]);
    wait_until(PATIENCE, "root's VM is counted", || {
        (counted_of(&stage.status(), &[qemu.pid()]) == 1).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()));

    // Two of those that are counted end.
    let status = stage.status();
    let ends: Vec<u32> =
        pids.iter().copied().filter(|pid| counted_of(&status, &[*pid]) == 1).take(2).collect();
    for vm in vms.iter_mut().filter(|vm| ends.contains(&vm.pid())) {
        vm.kill();
    }
    wait_until(PATIENCE, "others have their records", || {
        let status = stage.status();
        (counted_of(&status, &pids) == 4 && refused(&status).1 == Some(1)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()));
}

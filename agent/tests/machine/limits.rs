//! Sizes of the tables of records: records move when a size changes, and users have shares of the tables.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    process::{Command, Stdio},
};

use serde_json::Value;
use xtask::lab::{Child, PATIENCE, wait_until};

use crate::lab::{
    sandbox::{check, counted, node, qemu_after, raw, temporary},
    stage::{Stage, VM_CPU_TIME, vm_in},
};

/// A user and group that nothing else has.
const USER: u32 = 64_123;

const READ_REQUESTS: &[u32] = &[7, 1, 13];

/// The size of each table, and how much of it is in use.
fn tables(status: &Value) -> Vec<(u64, u64)> {
    let number = |table: &Value, key: &str| table[key].as_u64().unwrap();
    let tables = status["probe"]["tables"].as_array().unwrap();
    tables.iter().map(|table| (number(table, "size"), number(table, "used"))).collect()
}

#[test]
fn the_counters_of_a_vm_go_on_in_tables_of_other_sizes() {
    require!("ebpf", "snmpd", "qemu", "root");
    let dir = temporary();
    raw(dir.path().join("disk"));
    let mut stage = Stage::new();
    assert_eq!(tables(&stage.status())[0].0, 4095);
    let path = dir.path().join("disk");
    let blockdev = node("d0", "file", path.to_str().unwrap());
    let devices = ["-blockdev", &blockdev, "-device", "virtio-blk-pci,drive=d0,id=data"];
    let socket = dir.path().join("qmp");
    let (qemu, mut qmp) = qemu_after(dir.path(), ":", socket.to_str().unwrap(), &devices);
    let disk = counted(&stage, qemu.pid(), "data");
    let config = fs::read_to_string(stage.agent.config()).unwrap();
    let (mut requests, mut time) = (0, 0);
    for sizes in [[4095, 65_528, 4096], [100, 1000, 512], [20_000, 65_528, 16_384]] {
        let [vms, threads, images] = sizes;
        stage.agent.end().unwrap();
        let limits = format!("\n[limits]\nvms = {vms}\nthreads = {threads}\nimages = {images}\n");
        fs::write(stage.agent.config(), format!("{config}{limits}")).unwrap();
        stage.agent.start().unwrap();
        let status = stage.status();
        assert_eq!(status["probe"]["adopted"], true, "{}", stage.agent.log());
        let found: Vec<u64> = tables(&status).iter().map(|(size, _)| *size).collect();
        assert_eq!(found, sizes, "{}", stage.agent.log());
        assert_eq!(counted(&stage, qemu.pid(), "data"), disk);
        stage.wait_for("the CPU time goes on", VM_CPU_TIME, &disk[..1], |now| {
            now.is_some_and(|now| now >= time)
        });
        let now = stage.number(READ_REQUESTS, &disk).unwrap();
        assert!(now >= requests, "{now} after {requests}\n{}", stage.agent.log());
        check(&mut stage, &mut qmp, qemu.pid(), &[("data", "d0")]);
        requests = stage.number(READ_REQUESTS, &disk).unwrap();
        assert!(requests > now);
        time = stage.number(VM_CPU_TIME, &disk[..1]).unwrap();
    }
    assert!(stage.agent.log().contains("The records have moved"), "{}", stage.agent.log());
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

//! What whole command lines are described as.

mod disks;
mod machine;

use std::{fmt::Write as _, time::Instant};

use proptest::prelude::*;

use super::*;
use crate::inventory::{DomainDisk, StorageAccess, StorageMedia, StorageSource};

const MIB: u64 = 1 << 20;

fn described(program: &str, arguments: &[&str], files: &[(&str, &str)]) -> Description {
    let mut read = |path: &str| {
        let file = files.iter().find(|(name, _)| *name == path);
        file.map(|(_, text)| text.as_bytes().to_vec())
    };
    describe(program, arguments, &mut read)
}

fn words(line: &str) -> Description {
    let arguments: Vec<&str> = line.split_whitespace().collect();
    described("qemu-system-x86_64", &arguments, &[])
}

fn disks(arguments: &[&str]) -> Vec<DomainDisk> {
    described("qemu-system-x86_64", arguments, &[]).devices.disks
}

/// Memory and most memory in MiB.
fn memory(found: &Description) -> (Option<u64>, Option<u64>) {
    (found.memory.map(|bytes| bytes / MIB), found.max_memory.map(|bytes| bytes / MIB))
}

#[test]
fn qemu_as_libvirt_starts_it() {
    let found = words(
        "-name guest=web,,1,debug-threads=on -S -machine pc-q35-7.2,usb=off,dump-guest-core=off -accel kvm -cpu host \
         -m size=4194304k,slots=16,maxmem=16777216k -smp 2,maxcpus=4,sockets=4,cores=1,threads=1 \
         -uuid 2f5bd8a2-6c1c-4a3b-9d0e-0123456789ab -no-user-config",
    );
    assert_eq!(found.name.as_deref(), Some("web,1"));
    assert_eq!(found.uuid.unwrap().as_bytes()[..4], [0x2f, 0x5b, 0xd8, 0xa2]);
    assert_eq!(memory(&found), (Some(4096), Some(16384)));
    assert_eq!(
        (found.cpus, found.max_cpus, found.tcg, found.no_machine),
        (Some(2), Some(4), false, false)
    );
}

#[test]
fn qemu_as_proxmox_starts_it() {
    let found = words(
        "-id 100 -name web,debug-threads=on -no-shutdown -smbios type=1,uuid=11111111-2222-3333-4444-555555555555 \
         -smp 4,sockets=1,cores=4,maxcpus=4 -m 4096 -machine type=pc+pve0,accel=kvm \
         -drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF_CODE.fd \
         -drive file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring \
         -device scsi-hd,bus=scsihw0.0,drive=drive-scsi0,id=scsi0,bootindex=100 \
         -drive if=none,id=drive-ide2,media=cdrom,aio=io_uring \
         -device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2 \
         -drive file=rbd:pool/vm-100-disk-1:conf=/etc/ceph.conf:id=admin:key=secret,if=none,id=drive-scsi1,format=raw \
         -device scsi-hd,drive=drive-scsi1,id=scsi1 \
         -netdev type=tap,id=net0,ifname=tap100i0,script=/usr/libexec/qemu-server/pve-bridge,vhost=on \
         -device virtio-net-pci,mac=BC:24:11:AA:BB:CC,netdev=net0,bus=pci.0,id=net0",
    );
    assert_eq!(found.name.as_deref(), Some("web"));
    assert_eq!(found.uuid.unwrap().as_bytes()[..2], [0x11, 0x11]);
    assert_eq!((memory(&found).0, found.cpus, found.max_cpus), (Some(4096), Some(4), Some(4)));
    assert!(!found.tcg);
    use StorageAccess::{ReadOnly, ReadWrite};
    use StorageMedia::{HardDisk, OpticalDisk};
    use StorageSource::{Block, Network, Unknown};
    let disks: Vec<_> = found
        .devices
        .disks
        .iter()
        .map(|d| (&*d.target, d.source, &*d.format, &*d.resource, d.access, d.media, &*d.bus))
        .collect();
    assert_eq!(
        disks,
        [
            ("drive-scsi0", Block, "raw", "/dev/pve/vm-100-disk-0", ReadWrite, HardDisk, "scsi"),
            ("drive-ide2", Unknown, "raw", "", ReadOnly, OpticalDisk, "ide"),
            ("drive-scsi1", Network, "rbd", "rbd:pool/vm-100-disk-1", ReadWrite, HardDisk, "scsi"),
        ]
    );
    let nics = &found.devices.nics;
    assert_eq!(nics.len(), 1);
    assert_eq!((nics[0].device.as_deref(), &*nics[0].model), (Some("tap100i0"), "virtio"));
    assert_eq!(nics[0].mac, [0xbc, 0x24, 0x11, 0xaa, 0xbb, 0xcc]);
}

#[test]
fn a_hostile_command_line_costs_linear_time() {
    // As long as one that is read: many devices of one long node, of nodes in a circle, and with one netdev.
    let mut lines: Vec<String> = Vec::new();
    let devices = |line: &mut String, count: u32| {
        for at in 0..count {
            let _ = write!(line, "\0-device\0x,drive=n{},netdev=n", at % 100);
        }
    };
    let mut line = format!("-blockdev\0node-name=n0{}", ",a=b".repeat(30_000));
    devices(&mut line, 4000);
    lines.push(line);
    let mut line = String::new();
    for at in 0..100 {
        let _ = write!(
            line,
            "\0-blockdev\0driver=qcow2,node-name=n{at},file=n{},backing=n{}",
            (at + 1) % 100,
            (at + 7) % 100
        );
    }
    devices(&mut line, 8000);
    lines.push(line);
    lines.push("\0-device\0e1000,netdev=x\0-netdev\0tap,id=y".repeat(6000));
    lines.push("\0-drive\0file=a,id=a".repeat(12_000));
    lines.push(format!("-blockdev\0{}", "a.".repeat(120_000)));
    lines.push(format!("-drive\0file={}", "json:{\"filename\":\"".repeat(13_000)));
    lines.push(format!("-drive\0file={}", "blkdebug::".repeat(25_000)));
    lines.push(format!(
        "-blockdev\0{{\"driver\":\"quorum\",\"node-name\":\"a\",\"children\":[0{}]}}{}",
        ",0".repeat(43_000),
        "\0-device\0d,drive=a".repeat(7000)
    ));
    for line in lines {
        let arguments: Vec<&str> = line.split('\0').collect();
        let start = Instant::now();
        let _ = described("qemu-system-x86_64", &arguments, &[]);
        // Without optimization, on a machine that does something else, too. Quadratic time is minutes.
        let took = start.elapsed();
        assert!(took.as_secs() < 10, "{took:?}: {}", &line[..80]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_options_panic(line in "(\0-(name|m|smp|uuid|smbios|machine|accel|object|set)(\0[a-z=,.:0-9é]{0,12})?){0,8}") {
        let _ = described("qemu-system-x", &line.split('\0').collect::<Vec<_>>(), &[]);
    }

    #[test]
    fn no_arguments_panic(arguments in prop::collection::vec("(-(drive|blockdev|device|netdev|net|nic|hda|sd))|[a-z=,.:0-9é{}\"]{0,16}", 0..8)) {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let _ = described("qemu-system-x86_64", &arguments, &[]);
    }
}

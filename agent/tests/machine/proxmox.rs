//! QEMU as Proxmox VE starts it, without libvirt (`qm showcmd` of its versions 8 and 9), and an agent in the sandbox of its unit:
//! volumes behind links in `/dev`, a firewall's bridge for each tap, made by QEMU's script, and what is plugged in later.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use xtask::lab::{LoopDevice, PATIENCE, Qmp, missing, wait_until};

use crate::{
    disk_paths::Directory,
    lab::{
        network::{Network, hardware, if_index},
        sandbox::{DEFINED_SIZE, check, counted, raw, script, temporary, unit_stage},
        stage::{Stage, VM_CUR_CPU_NUMBER, index},
    },
};

const MAX_CPU_NUMBER: &[u32] = &[4, 1, 11];
const MEM_UNIT: &[u32] = &[4, 1, 12];
const CUR_MEM: &[u32] = &[4, 1, 13];
const MAX_MEM: &[u32] = &[4, 1, 15];
const IF_INDEX: &[u32] = &[8, 1, 2];
const PARENT: &[u32] = &[8, 1, 3];

/// Of version 8. `@x` is a name of this test's own.
const OF_8: &str = "-name web,debug-threads=on -no-shutdown \
    -chardev socket,id=qmp,path=DIR/100.qmp,server=on,wait=off -mon chardev=qmp,mode=control \
    -pidfile DIR/100.pid -daemonize -smbios type=1,uuid=6a1e0f1c-4b7e-4d0a-9d0e-0123456789ab \
    -smp 2,sockets=1,cores=2,maxcpus=2 -nodefaults -boot menu=on,strict=on,reboot-timeout=1000 \
    -vnc unix:DIR/100.vnc,password=on -cpu qemu64,+kvm_pv_eoi,+kvm_pv_unhalt -m 128 \
    -object iothread,id=iothread-virtioscsi0 -device pci-bridge,id=pci.1,chassis_nr=1,bus=pci.0,addr=0x1e \
    -device pci-bridge,id=pci.3,chassis_nr=3,bus=pci.0,addr=0x5 -device piix3-usb-uhci,id=uhci,bus=pci.0,addr=0x1.0x2 \
    -device usb-tablet,id=tablet,bus=uhci.0,port=1 -device VGA,id=vga,bus=pci.0,addr=0x2 \
    -device virtio-balloon-pci,id=balloon0,bus=pci.0,addr=0x3,free-page-reporting=on \
    -drive if=none,id=drive-ide2,media=cdrom,aio=io_uring -device ide-cd,bus=ide.1,unit=0,drive=drive-ide2,id=ide2,bootindex=101 \
    -device virtio-scsi-pci,id=virtioscsi0,bus=pci.3,addr=0x1,iothread=iothread-virtioscsi0 \
    -drive file=DEV/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring,detect-zeroes=on \
    -device scsi-hd,bus=virtioscsi0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,bootindex=100 \
    -drive file=DIR/images/100/vm-100-disk-1.raw,if=none,id=drive-virtio1,format=raw,cache=none,aio=io_uring,detect-zeroes=on \
    -device virtio-blk-pci,drive=drive-virtio1,id=virtio1,bus=pci.0,addr=0xb \
    -drive file=DIR/images/100/vm-100-disk-3.qcow2,if=none,id=drive-virtio2,format=qcow2,cache=none,aio=io_uring,detect-zeroes=on \
    -device virtio-blk-pci,drive=drive-virtio2,id=virtio2,bus=pci.0,addr=0xc \
    -netdev type=tap,id=net0,ifname=@t100,script=DIR/pve-bridge,downscript=DIR/pve-bridgedown \
    -device virtio-net-pci,mac=BC:24:11:2E:45:01,netdev=net0,bus=pci.0,addr=0x12,id=net0,rx_queue_size=1024,tx_queue_size=256,bootindex=102 \
    -machine type=pc";

/// Of version 9, whose disks are block nodes in JSON.
const OF_9: &str = "-name db,debug-threads=on -no-shutdown \
    -chardev socket,id=qmp,path=DIR/101.qmp,server=on,wait=off -mon chardev=qmp,mode=control \
    -pidfile DIR/101.pid -daemonize -smbios type=1,uuid=6a1e0f1c-4b7e-4d0a-9d0e-0123456789ac \
    -smp 1,sockets=2,cores=2,maxcpus=4 -device qemu64-x86_64-cpu,id=cpu2,socket-id=0,core-id=1,thread-id=0 \
    -nodefaults -boot menu=on,strict=on,reboot-timeout=1000 -vnc unix:DIR/101.vnc,password=on -cpu qemu64 \
    -m size=128,slots=255,maxmem=524288M -object memory-backend-ram,id=ram-node0,size=128M \
    -numa node,nodeid=0,cpus=0-3,memdev=ram-node0 \
    -object {\"id\":\"throttle-drive-scsi0\",\"limits\":{},\"qom-type\":\"throttle-group\"} \
    -device virtio-scsi-pci,id=scsihw0,bus=pci.0,addr=0x5 \
    -blockdev {\"detect-zeroes\":\"on\",\"discard\":\"ignore\",\"driver\":\"throttle\",\"file\":{\"cache\":{\"direct\":true,\"no-flush\":false},\
\"detect-zeroes\":\"on\",\"discard\":\"ignore\",\"driver\":\"raw\",\"file\":{\"aio\":\"io_uring\",\"cache\":{\"direct\":true,\"no-flush\":false},\
\"detect-zeroes\":\"on\",\"discard\":\"ignore\",\"driver\":\"host_device\",\"filename\":\"DEV/zvol/rpool/data/vm-101-disk-0\",\"node-name\":\"e0\",\
\"read-only\":false},\"node-name\":\"f0\",\"read-only\":false},\"node-name\":\"drive-scsi0\",\"read-only\":false,\"throttle-group\":\"throttle-drive-scsi0\"} \
    -device scsi-hd,bus=scsihw0.0,scsi-id=0,drive=drive-scsi0,id=scsi0,device_id=drive-scsi0,write-cache=on \
    -netdev type=tap,id=net0,ifname=@t101,script=DIR/pve-bridge,downscript=DIR/pve-bridgedown \
    -device virtio-net-pci,mac=BC:24:11:2E:45:02,netdev=net0,bus=pci.0,addr=0x12,id=net0,host_mtu=1500 \
    -machine hpet=off,type=pc";

/// What Proxmox does for a tap of a VM with a firewall: a bridge of the tap's own, and a veth into the host's bridge.
const BRIDGE: &str = "number=${1#@t}
ip link add @f$number type bridge
ip link add @l$number type veth peer name @p$number
ip link set @l$number master @f$number
ip link set @p$number master @v
ip link set $1 master @f$number
ip link set $1 up";

/// The host, and its VMs, which end with this.
struct Proxmox {
    vms: Vec<u32>,
    dir: TempDir,
    dev: Directory,
    _loops: Vec<LoopDevice>,
    network: Network,
    physical: u64,
}

impl Drop for Proxmox {
    fn drop(&mut self) {
        for pid in &self.vms {
            if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                // Fails if it has ended.
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

impl Proxmox {
    fn new() -> Self {
        let dir = temporary();
        let dev = Directory::new("/dev", "proxmox");
        let mut loops = Vec::new();
        for (at, volume) in [
            "pve/vm-100-disk-0",
            "pve/vm-100-disk-2",
            "zvol/rpool/data/vm-101-disk-0",
            "zvol/rpool/data/vm-101-disk-1",
        ]
        .into_iter()
        .enumerate()
        {
            let file = dir.path().join(format!("volume{at}"));
            raw(&file);
            let device = LoopDevice::of(&file).unwrap();
            let link = PathBuf::from(dev.path(volume));
            fs::create_dir_all(link.parent().unwrap()).unwrap();
            let up = "../".repeat(volume.split('/').count());
            let name = device.path().file_name().unwrap().to_str().unwrap();
            symlink(format!("{up}{name}"), link).unwrap();
            loops.push(device);
        }
        fs::create_dir_all(dir.path().join("images/100")).unwrap();
        raw(dir.path().join("images/100/vm-100-disk-1.raw"));
        let image = dir.path().join("images/100/vm-100-disk-3.qcow2");
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]).arg(image).arg("40G");
        assert!(create.status().unwrap().success());
        let network = Network::new();
        network.ip("link add @v type bridge");
        let physical = hardware().map_or(0, |hardware| {
            network.ip(&format!("link add link {hardware} name @e type macvlan mode bridge"));
            network.ip("link set @e master @v");
            if_index(&hardware)
        });
        script(dir.path(), "pve-bridge", &network.named(BRIDGE));
        script(dir.path(), "pve-bridgedown", "true");
        Self { vms: Vec::new(), dir, dev, _loops: loops, network, physical }
    }

    fn text(&self, text: &str) -> String {
        let dir = self.dir.path().to_str().unwrap();
        self.network.named(text).replace("DIR", dir).replace("DEV", &self.dev.path(""))
    }

    /// Starts a VM, which becomes a daemon.
    fn start(&mut self, id: &str, line: &str) -> (u32, Qmp) {
        let accelerator = if missing("kvm").is_none() { "kvm" } else { "tcg" };
        let mut command = Command::new("/usr/bin/kvm");
        command.args(self.text(line).split_whitespace()).args(["-accel", accelerator]);
        let done = command.stdin(Stdio::null()).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let pid = fs::read_to_string(self.dir.path().join(format!("{id}.pid"))).unwrap();
        let pid = pid.trim().parse().unwrap();
        self.vms.push(pid);
        (pid, Qmp::connect(&self.dir.path().join(format!("{id}.qmp"))).unwrap())
    }

    /// Waits until the interface has the tap of this name, and the hardware as its parent.
    fn wait_for_nic(&self, stage: &mut Stage, pid: u32, tap: &str) {
        let device = self.network.name(tap);
        let found = |stage: &Stage| {
            let vm = stage.vm("pid", pid)?;
            let nic = vm["nics"].as_array()?.iter().find(|nic| nic["device"] == *device)?;
            Some([index(&vm)?, index(nic)?])
        };
        let nic = wait_until(PATIENCE, &format!("{device} has a row"), || found(stage));
        let nic = nic.unwrap_or_else(|error| panic!("{error}\n{}", stage.status()["vms"]));
        stage.wait_for("vmNetworkIfIndex", IF_INDEX, &nic, |is| is == Some(if_index(&device)));
        stage.wait_for("vmNetworkParent", PARENT, &nic, |is| is == Some(self.physical));
    }
}

/// Compares vCPUs and memory, in MiB, present and at most.
fn expect_sizes(stage: &mut Stage, pid: u32, cpus: [u64; 2], memory: [u64; 2]) {
    let vm = stage.wait_for_vm(pid, usize::try_from(cpus[0]).unwrap());
    stage.wait_for("vCPUs", VM_CUR_CPU_NUMBER, &[vm], |is| is == Some(cpus[0]));
    let unit = stage.number(MEM_UNIT, &[vm]).unwrap();
    let in_mib = |stage: &mut Stage, column| {
        stage.number(column, &[vm]).map(|memory| memory * unit / (1 << 20))
    };
    assert_eq!(stage.number(MAX_CPU_NUMBER, &[vm]), Some(cpus[1]));
    assert_eq!([CUR_MEM, MAX_MEM].map(|of| in_mib(stage, of)), memory.map(Some));
}

fn execute(qmp: &mut Qmp, command: &str) {
    qmp.execute(command).unwrap();
}

fn monitor(qmp: &mut Qmp, line: &str) {
    let said = qmp.monitor(line).unwrap();
    assert!(said.contains(r#"{"return": ""}"#) || said.contains("OK"), "{line}: {said}");
}

#[test]
fn a_proxmox_host_is_shown_as_it_is() {
    require!("ebpf", "kvm", "snmpd", "qemu", "loop", "root");
    let mut host = Proxmox::new();
    let sandbox = temporary();
    let mut stage = unit_stage(sandbox.path());
    let (web, mut of_web) = host.start("100", OF_8);
    let (db, mut of_db) = host.start("101", OF_9);
    for (pid, name, uuid) in [
        (web, "web", "6a1e0f1c-4b7e-4d0a-9d0e-0123456789ab"),
        (db, "db", "6a1e0f1c-4b7e-4d0a-9d0e-0123456789ac"),
    ] {
        let vm = stage.index_by_uuid(uuid);
        let vm = stage.vm("index", vm).unwrap();
        assert_eq!((&vm["name"], &vm["pid"]), (&name.into(), &pid.into()));
    }
    expect_sizes(&mut stage, web, [2, 2], [128, 128]);
    expect_sizes(&mut stage, db, [2, 4], [128, 524_288]);
    check(
        &mut stage,
        &mut of_web,
        web,
        &[("drive-scsi0", "drive-scsi0"), ("drive-virtio1", "drive-virtio1")],
    );
    let image = counted(&stage, web, "drive-virtio2");
    stage.wait_for("the size in a header", DEFINED_SIZE, &image, |kib| kib == Some(40 << 20));
    check(&mut stage, &mut of_db, db, &[("scsi0", "drive-scsi0")]);
    host.wait_for_nic(&mut stage, web, "t100");
    host.wait_for_nic(&mut stage, db, "t101");

    // Plugged in as version 8 does, and as version 9.
    let volume = host.text("drive_add auto file=DEV/pve/vm-100-disk-2,if=none,id=drive-scsi1,format=raw,cache=none,aio=io_uring,detect-zeroes=on");
    monitor(&mut of_web, &volume);
    execute(
        &mut of_web,
        r#"{"execute":"device_add","arguments":{"driver":"scsi-hd","bus":"virtioscsi0.0","channel":0,"scsi-id":0,"lun":1,"drive":"drive-scsi1","id":"scsi1"}}"#,
    );
    let node = host.text(
        r#"{"execute":"blockdev-add","arguments":{"driver":"raw","node-name":"drive-scsi1","cache":{"direct":true},"file":{"driver":"host_device","aio":"io_uring","cache":{"direct":true},"filename":"DEV/zvol/rpool/data/vm-101-disk-1"}}}"#,
    );
    execute(&mut of_db, &node);
    execute(
        &mut of_db,
        r#"{"execute":"device_add","arguments":{"driver":"scsi-hd","bus":"scsihw0.0","scsi-id":1,"drive":"drive-scsi1","id":"scsi1","write-cache":"on"}}"#,
    );
    let net = host.text(
        r#"{"execute":"netdev_add","arguments":{"type":"tap","id":"net1","ifname":"@t102","script":"DIR/pve-bridge","downscript":"DIR/pve-bridgedown"}}"#,
    );
    execute(&mut of_db, &net);
    execute(
        &mut of_db,
        r#"{"execute":"device_add","arguments":{"driver":"virtio-net-pci","netdev":"net1","mac":"BC:24:11:2E:45:03","bus":"pci.0","addr":"0x13","id":"net1"}}"#,
    );
    host.wait_for_nic(&mut stage, db, "t102");
    let device = |path: &str| {
        let path = fs::canonicalize(host.dev.path(path)).unwrap();
        path.file_name().unwrap().to_str().unwrap().to_owned()
    };
    let [of_8, of_9] = ["pve/vm-100-disk-2", "zvol/rpool/data/vm-101-disk-1"].map(device);
    check(&mut stage, &mut of_web, web, &[(&of_8, "drive-scsi1")]);
    check(&mut stage, &mut of_db, db, &[(&of_9, "drive-scsi1")]);
}

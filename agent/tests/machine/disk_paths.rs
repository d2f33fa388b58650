//! Disks whose paths mean something else to the agent than to the VM's process: links in `/dev` that the agent's own `/dev` does
//! not have, roots of their own, working directories.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
};

use serde_json::Value;
use xtask::lab::{Child, LoopDevice, PATIENCE, wait_until};

use crate::lab::{
    sandbox::{PRIVATE_DEV, check, counted, node, qemu_after, raw, script, temporary},
    stage::Stage,
};

/// A directory for this test at a path that is made known to the host, and is removed when this is dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new(parent: &str, name: &str) -> Self {
        let path = PathBuf::from(format!("{parent}/kvmeter-{name}-{}", process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An agent whose `/dev` has only what systemd's `PrivateDevices=yes` leaves.
fn sandboxed_stage(dir: &Path) -> Stage {
    let text = format!(
        "exec unshare --mount --propagation private sh -e -c '\n\
         {PRIVATE_DEV}\n\
         exec \"$0\" \"$@\"' {} \"$@\"",
        env!("CARGO_BIN_EXE_kvmeter")
    );
    let program = script(dir, "kvmeter", &text);
    Stage::with(|agent| agent.use_program(program))
}

#[test]
fn a_disk_named_by_links_in_dev_is_counted_by_an_agent_without_them() {
    require!("ebpf", "snmpd", "qemu", "loop", "root");
    let dir = temporary();
    let mut loops = Vec::new();
    for name in ["one", "two", "other"] {
        raw(dir.path().join(name));
        loops.push(LoopDevice::of(&dir.path().join(name)).unwrap());
    }
    let kernels_name =
        |at: usize| loops[at].path().file_name().unwrap().to_str().unwrap().to_owned();
    let links = Directory::new("/dev", "vg");
    symlink(format!("../{}", kernels_name(0)), links.path("root0")).unwrap();
    symlink(loops[1].path(), links.path("dm-name")).unwrap();
    symlink("dm-name", links.path("by-id")).unwrap();
    let mut stage = sandboxed_stage(dir.path());
    for option in ["strictatime", "relatime", "noatime"] {
        let prepare = format!("mount -o remount,bind,{option} /dev");
        let arguments = [
            "-blockdev",
            &node("d0", "host_device", &links.path("root0")),
            "-device",
            "virtio-blk-pci,drive=d0,id=relative",
            "-drive",
            &format!("file={},format=raw,if=none,id=twice,cache=none", links.path("by-id")),
        ];
        let socket = dir.path().join("qmp");
        let socket = socket.to_str().unwrap();
        let (qemu, mut qmp) = qemu_after(dir.path(), &prepare, socket, &arguments);
        println!("{option}");
        counted(&stage, qemu.pid(), "relative");
        // udev makes a link anew, and another device has its name then.
        fs::remove_file(links.path("root0")).unwrap();
        symlink(loops[2].path(), links.path("root0")).unwrap();
        let disks = [("relative", "d0"), ("twice", "twice")];
        check(&mut stage, &mut qmp, qemu.pid(), &disks);
        fs::remove_file(links.path("root0")).unwrap();
        symlink(format!("../{}", kernels_name(0)), links.path("root0")).unwrap();
        // An agent that is started later finds the same.
        stage.agent.end().unwrap();
        stage.agent.start().unwrap();
        check(&mut stage, &mut qmp, qemu.pid(), &disks);
        drop(qemu);
        fs::remove_file(socket).unwrap();
    }
}

#[test]
fn a_disk_of_a_process_with_a_root_of_its_own_is_not_the_hosts_file_of_that_path() {
    require!("ebpf", "snmpd", "qemu", "root");
    let dir = temporary();
    // The host has other files at the paths that the process uses.
    let host = Directory::new("/run", "pod");
    for name in ["a", "b", "c"] {
        fs::create_dir_all(host.path(&format!("disks/{name}"))).unwrap();
        raw(host.path(&format!("disks/{name}/disk.img")));
        fs::create_dir(dir.path().join(name)).unwrap();
        raw(dir.path().join(name).join("disk.img"));
    }
    let over = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-b", "disk.img", "-F", "raw", "top-1.qcow2"])
        .current_dir(dir.path().join("c"))
        .status();
    assert!(over.unwrap().success());
    let pod = dir.path().join("pod");
    fs::create_dir(&pod).unwrap();
    // /var/run is a link in the pod only, and each disk has a mount of its own.
    let prepare = format!(
        "R={pod}; T={dir}; H={host}\nmount --bind $R $R; cd $R; mkdir -p run var old io\n\
         for d in usr etc dev proc; do mkdir -p $d; mount --rbind /$d $d; done\n\
         for l in bin sbin lib lib64; do ln -sfn usr/$l $l; done; ln -sfn ../run var/run\n\
         mount -t tmpfs tmpfs run; mount --bind $T io; mkdir -p run/${{H#/run/}}/disks\n\
         for x in a b c; do mkdir run/${{H#/run/}}/disks/$x; mount --bind $T/$x run/${{H#/run/}}/disks/$x; done\n\
         mkdir run/links; ln -s ../${{H#/run/}}/disks/c/top-1.qcow2 run/links/top.qcow2\n\
         ln -s /var/run/${{H#/run/}}/disks/c/disk.img run/links/disk.img\n\
         pivot_root . old; umount -l /old; cd /",
        pod = pod.display(),
        dir = dir.path().display(),
        host = host.0.display(),
    );
    let path = |name: &str| format!("/var{}", host.path(&format!("disks/{name}/disk.img")));
    let mut stage = sandboxed_stage(dir.path());
    let arguments = [
        "-blockdev",
        &node("a", "file", &path("a")),
        "-device",
        "virtio-blk-pci,drive=a,id=ua-a",
        "-blockdev",
        &node("b", "file", &path("b")),
        "-device",
        "virtio-blk-pci,drive=b,id=ua-b",
        "-drive",
        "file=/var/run/links/top.qcow2,if=none,id=c,cache=none",
    ];
    let (qemu, mut qmp) = qemu_after(dir.path(), &prepare, "/io/qmp", &arguments);
    let disks = [("ua-a", "a"), ("ua-b", "b"), ("c", "c")];
    // The first read of a qcow2 image reads a table, too.
    counted(&stage, qemu.pid(), "c");
    qmp.request("c", "read 1M 64k").unwrap();
    check(&mut stage, &mut qmp, qemu.pid(), &disks);
}

#[test]
fn a_disk_is_found_by_a_path_from_the_working_directory() {
    require!("ebpf", "snmpd", "qemu", "root");
    let dir = temporary();
    for name in ["a", "b"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        raw(dir.path().join(name).join("disk.img"));
    }
    for name in ["dot.img", "slashes.img", "dotdot.img"] {
        raw(dir.path().join(name));
    }
    let base = dir.path().display();
    let drive = |id: &str, path: &str| format!("file={path},format=raw,if=none,id={id},cache=none");
    let drives = [
        drive("one", "a/disk.img"),
        drive("two", "b/disk.img"),
        drive("dot", "./dot.img"),
        drive("slashes", &format!("{base}//slashes.img")),
        drive("dotdot", &format!("{base}/a/../dotdot.img")),
    ];
    let arguments: Vec<&str> = drives.iter().flat_map(|drive| ["-drive", drive]).collect();
    let mut stage = sandboxed_stage(dir.path());
    let socket = dir.path().join("qmp");
    let socket = socket.to_str().unwrap();
    let (qemu, mut qmp) = qemu_after(dir.path(), "", socket, &arguments);
    let disks = ["one", "two", "dot", "slashes", "dotdot"].map(|disk| (disk, disk));
    check(&mut stage, &mut qmp, qemu.pid(), &disks);
    // What is open stays the disk.
    fs::rename(dir.path().join("a/disk.img"), dir.path().join("a/old.img")).unwrap();
    fs::remove_file(dir.path().join("dot.img")).unwrap();
    raw(dir.path().join("dot.img"));
    check(&mut stage, &mut qmp, qemu.pid(), &disks);
    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    check(&mut stage, &mut qmp, qemu.pid(), &disks[1..]);
}

/// A process that has a VM of KVM, with the name and the arguments of another VMM.
fn vmm(program: &str, cwd: &Path, arguments: &[&str]) -> Child {
    let perl = "open K, q(+<), q(/dev/kvm); ioctl(K, 0xAE01, 0) or die; sleep 600";
    let text = format!("exec -a {program} perl -e '{perl}' -- \"$@\"");
    let mut command = Command::new("bash");
    command.args(["-c", &text, program]).args(arguments).current_dir(cwd);
    Child::start(command.stdin(Stdio::null()).stdout(Stdio::null())).unwrap()
}

#[test]
fn firecrackers_configuration_is_read_where_the_process_has_it() {
    require!("ebpf", "snmpd", "kvm", "root");
    let dir = temporary();
    let config = r#"{"drives":[{"drive_id":"rootfs","path_on_host":"r.ext4","is_root_device":true,"is_read_only":false}],
        "network-interfaces":[{"iface_id":"e0","guest_mac":"06:00:ac:10:00:02","host_dev_name":"none"}]}"#;
    raw(dir.path().join("r.ext4"));
    fs::write(dir.path().join("vm.json"), config).unwrap();
    fs::create_dir(dir.path().join("links")).unwrap();
    symlink("../vm.json", dir.path().join("links/link.json")).unwrap();
    let memory = Directory::new("/dev/shm", "config");
    fs::write(memory.path("vm.json"), config).unwrap();
    assert!(Command::new("mkfifo").arg(dir.path().join("fifo")).status().unwrap().success());
    let stage = sandboxed_stage(dir.path());
    let disks = |pid: u32| {
        let vm = stage.vm("pid", pid)?;
        let disks = vm["disks"].as_array().unwrap().len();
        (disks > 0 || vm["gaps"].as_array().is_some_and(|gaps| !gaps.is_empty()))
            .then_some((disks, vm["gaps"].clone()))
    };
    let absolute = dir.path().join("vm.json").to_str().unwrap().to_owned();
    for file in
        [&*absolute, "vm.json", "./vm.json", "links/../links/link.json", &memory.path("vm.json")]
    {
        for arguments in [vec!["--config-file", file], vec![&*format!("--config-file={file}")]] {
            let arguments = [&["--no-api", "--id", "kvt"][..], &arguments].concat();
            let vmm = vmm("firecracker", dir.path(), &arguments);
            let found = wait_until(PATIENCE, "the configuration is read", || disks(vmm.pid()));
            let found =
                found.unwrap_or_else(|error| panic!("{file}: {error}\n{}", stage.agent.log()));
            assert_eq!(found, (1, Value::Array(Vec::new())), "{file}");
        }
    }
    for (file, why) in [
        ("none.json", "nothing is there"),
        ("fifo", "no regular file"),
        ("/proc/self/cwd/vm.json", "keep a reader waiting"),
    ] {
        let vmm = vmm("firecracker", dir.path(), &["--no-api", "--config-file", file]);
        let found = wait_until(PATIENCE, "the reason is shown", || disks(vmm.pid())).unwrap();
        assert!(found.0 == 0 && found.1[0].as_str().unwrap().contains(why), "{file}: {found:?}");
        let log = stage.agent.log();
        assert!(log.contains(why) && log.contains(file), "{file}: {log}");
    }
}

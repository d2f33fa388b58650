//! What QEMU makes of its options, and what a manager reads of it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use xtask::lab::{Child, LabError, PATIENCE, Qmp, wait_until};

use crate::lab::stage::Stage;

const VM_MAX_CPU_NUMBER: &[u32] = &[4, 1, 11];
const VM_CUR_MEM: &[u32] = &[4, 1, 13];
const VM_MAX_MEM: &[u32] = &[4, 1, 15];
const VM_STORAGE_SOURCE_TYPE: &[u32] = &[7, 1, 4];
const NETWORK: u64 = 6;

/// Starts QEMU with these options only, and its monitor at a socket.
fn start(program: &str, options: &[&str], socket: &Path) -> (Child, Qmp) {
    try_start(program, options, socket).unwrap()
}

/// The same.
///
/// # Errors
///
/// When this QEMU refuses the options.
fn try_start(program: &str, options: &[&str], socket: &Path) -> Result<(Child, Qmp), LabError> {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program, "-S", "-display", "none"]).args(options);
    command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let child = Child::start(&mut command).unwrap();
    let qmp = Qmp::connect(socket)?;
    Ok((child, qmp))
}

/// Options that QEMU 7.2 takes, and 10.0 refuses.
const HEXADECIMAL: &[&str] = &["-accel", "kvm", "-m", "0x40"];

/// Bytes that QEMU says the guest has.
fn memory(qmp: &mut Qmp) -> u64 {
    let said = qmp.execute(r#"{"execute":"query-memory-size-summary"}"#).unwrap();
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    let of = |key: &str| said["return"][key].as_u64().unwrap_or(0);
    of("base-memory") + of("plugged-memory")
}

fn index_of(stage: &Stage, child: &Child) -> u32 {
    wait_until(PATIENCE, "the VM is listed", || stage.index_of(child.pid()))
        .unwrap_or_else(|error| panic!("{error}; the agent says:\n{}", stage.agent.log()))
}

#[test]
fn memory_is_what_qemu_says() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let mut stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("machine.conf");
    fs::write(
        &file,
        "[machine]\n  type = \"q35\"\n  accel = \"kvm\"\n[memory]\nsize = \"320M\"\n\
         [smp-opts]\ncpus = \"2\"\nmaxcpus = \"4\"\n",
    )
    .unwrap();
    let file = file.display().to_string();
    // Options, and vmMaxCpuNumber.
    let cases: &[(&[&str], u64)] = &[
        (&["-accel", "kvm"], 1),
        (&["-accel", "kvm", "-m", "0.25G"], 1),
        (&["-accel", "kvm", "-m", "131072K"], 1),
        (&["-accel", "kvm", "-m", "100.1M"], 1),
        (HEXADECIMAL, 1),
        (&["-accel", "kvm", "-m", "0"], 1),
        (&["-accel", "kvm", "-m", "64", "-m", "slots=2,maxmem=1G", "-m", "size=96"], 1),
        (&["-readconfig", &file], 4),
        (&["-m", "64", "-smp", "1", "-readconfig", &file], 4),
        (&["-readconfig", &file, "-m", "64", "-smp", "1"], 4),
        (&["-M", "q35,accel=kvm,memory.size=96M,smp.cpus=2,smp.maxcpus=3"], 3),
        (&["-M", "q35,accel=kvm,memory.size=96M", "-m", "64"], 1),
        (
            &[
                "-M",
                "q35,accel=kvm,memory-backend=m",
                "-object",
                "memory-backend-memfd,id=m,size=96M",
            ],
            1,
        ),
        (
            &[
                "-object",
                r#"{"qom-type":"memory-backend-ram","id":"m","size":100663296}"#,
                "-M",
                "q35,memory-backend=m",
                "-enable-kvm",
            ],
            1,
        ),
        (
            &[
                "-accel",
                "kvm",
                "-m",
                "64,slots=2,maxmem=1G",
                "-object",
                "memory-backend-ram,id=d,size=128M",
                "-device",
                "pc-dimm,id=x,memdev=d",
            ],
            1,
        ),
    ];
    for (at, (options, cpus)) in cases.iter().enumerate() {
        let socket = dir.path().join(format!("{at}.sock"));
        let options = [&["-nodefaults"], *options].concat();
        let started = try_start("qemu-system-x86_64", &options, &socket);
        if started.is_err() && options[1..] == *HEXADECIMAL {
            continue;
        }
        let (child, mut qmp) = started.unwrap();
        let said = memory(&mut qmp);
        let vm = [index_of(&stage, &child)];
        assert_eq!(stage.number(VM_CUR_MEM, &vm), Some(said / 1024), "{options:?}");
        assert!(stage.number(VM_MAX_MEM, &vm) >= Some(said / 1024), "{options:?}");
        assert_eq!(stage.number(VM_MAX_CPU_NUMBER, &vm), Some(*cpus), "{options:?}");
    }
}

#[test]
fn memory_is_estimated_where_the_configuration_file_cannot_be_read() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let mut stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    // QEMU reads a pipe, whose content is gone then.
    let pipe = dir.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let text = "[memory]\nsize = \"320M\"\n[name]\nguest = \"hidden\"\n";
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || fs::write(pipe, text)
    });
    let file = pipe.display().to_string();
    let options = ["-nodefaults", "-accel", "kvm", "-readconfig", &file];
    let (child, mut qmp) = start("qemu-system-x86_64", &options, &dir.path().join("qmp.sock"));
    writer.join().unwrap().unwrap();
    let said = memory(&mut qmp);
    assert_eq!(said, 320 << 20);
    let vm = [index_of(&stage, &child)];
    stage.wait_for("the estimate", VM_CUR_MEM, &vm, |size| size == Some(said / 1024));
    assert_ne!(stage.number(VM_MAX_CPU_NUMBER, &vm), Some(1), "the file may say any number");
}

#[test]
fn disks_that_a_socket_leads_to_are_network_disks() {
    require!("ebpf", "kvm", "snmpd", "qemu");
    let mut stage = Stage::new();
    let dir = tempfile::tempdir().unwrap();
    let (image, export) = (dir.path().join("image"), dir.path().join("nbd.sock"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let mut server = Command::new("setpriv");
    server.args(["--pdeathsig", "KILL", "qemu-nbd", "-x", "x", "-f", "raw", "-t", "-e", "8", "-k"]);
    let _server = Child::start(server.arg(&export).arg(&image).stdin(Stdio::null())).unwrap();
    wait_until(PATIENCE, "the server listens", || export.exists().then_some(())).unwrap();
    let server = format!("server.type=unix,server.path={},export=x", export.display());
    let nested = format!(
        r#"{{"driver":"throttle","node-name":"d","throttle-group":"t","file":{{"driver":"raw","file":{{"driver":"nbd",
           "server":{{"type":"unix","path":"{}"}},"export":"x"}}}}}}"#,
        export.display()
    );
    let keys = format!("file.driver=nbd,file.{}", server.replace(",", ",file."));
    let (drive, detached) =
        (format!("{keys},format=raw,if=virtio"), format!("{keys},format=raw,if=none,id=d"));
    let node = format!("driver=nbd,node-name=d,{server}");
    let name = format!("file=nbd+unix:///x?socket={},format=raw,if=virtio", export.display());
    let blk = ["-device", "virtio-blk-pci,drive=d,id=b"];
    let cases: &[&[&str]] = &[
        &["-object", "throttle-group,id=t", "-blockdev", &nested, blk[0], blk[1]],
        &["-blockdev", &node, blk[0], blk[1]],
        &["-drive", &drive],
        &["-drive", &detached, blk[0], blk[1]],
        &["-drive", &name],
    ];
    for (at, options) in cases.iter().enumerate() {
        let socket = dir.path().join(format!("{at}.sock"));
        let options = [&["-nodefaults", "-accel", "kvm", "-m", "64"], *options].concat();
        let (child, _qmp) = start("qemu-system-x86_64", &options, &socket);
        let vm = index_of(&stage, &child);
        let kind = stage.number(VM_STORAGE_SOURCE_TYPE, &[vm, 1]);
        assert_eq!(kind, Some(NETWORK), "{options:?}");
        wait_until(PATIENCE, "its reason", || {
            let vm = stage.vm("index", vm)?;
            (vm["disks"][0]["why"] == "it is reached by the network").then_some(())
        })
        .unwrap();
    }
}

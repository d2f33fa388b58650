//! What this machine has, so that a test that does not find it fails.

use std::{env, fs, path::Path};

use xtask::lab::{DebianKernel, find, libvirt_program};

/// The names for `KVMETER_REQUIRE`, with commas between them.
pub(crate) fn required() -> String {
    if let Ok(required) = env::var("KVMETER_REQUIRE") {
        return required;
    }
    let mut has = Vec::new();
    if rustix::process::geteuid().is_root() {
        has.push("root");
        if Path::new("/sys/kernel/btf/vmlinux").exists() {
            has.push("ebpf");
        }
    }
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        has.push("kvm");
    }
    if Path::new("/dev/loop-control").exists() {
        has.push("loop");
    }
    if Path::new("/dev/fuse").exists() {
        has.push("fuse");
    }
    if !DebianKernel::all().is_empty() {
        has.push("kernels");
    }
    for (name, program) in [
        ("snmpd", "snmpd"),
        ("snmptrapd", "snmptrapd"),
        ("qemu", "qemu-system-x86_64"),
        ("smilint", "smilint"),
        ("strace", "strace"),
        ("fio", "fio"),
        ("pysmi", "mibdump"),
        ("libvirt", libvirt_program().unwrap_or("libvirtd")),
    ] {
        if find(program).is_some() {
            has.push(name);
        }
    }
    has.join(",")
}

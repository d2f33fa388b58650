//! `cargo xtask setup`: what building, showing and testing kvmeter need. Can be run again at any time; what is
//! there stays as it is.

mod kernels;
mod mounts;
mod packages;
mod toolchain;

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::bail;
use clap::Args;
use kernels::kernels;
use mounts::mounts;
use packages::packages;
use toolchain::toolchain;

/// For the build: the library of libvirt.
const BUILD: &[&str] = &["libvirt-dev", "pkg-config"];

/// For the demo: the master and its tools.
const SHOW: &[&str] = &["snmpd", "snmp"];

/// For the demo's guests on a machine without KVM, and for the tests.
const QEMU: &[&str] = &["qemu-system-x86"];

/// What the tests and benchmarks use beside that.
const TEST: &[&str] = &[
    "bpftool",
    "busybox-static",
    "e2fsprogs",
    "fio",
    "iproute2",
    "libcap2-bin",
    "libvirt-clients",
    "libvirt-daemon-system",
    "python3-pysmi",
    "qemu-utils",
    "smitools",
    "snmptrapd",
    "strace",
];

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Install without asking
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Installs everything.
pub(crate) fn run_all(options: &Options) -> anyhow::Result<()> {
    toolchain()?;
    packages(&[BUILD, SHOW, QEMU, TEST].concat(), options.yes)?;
    kernels()?;
    mounts(options.yes)?;
    println!("Everything is there.");
    Ok(())
}

/// Installs what the demo needs.
pub(crate) fn run_for_demo(has_kvm: bool) -> anyhow::Result<()> {
    toolchain()?;
    let wanted = [BUILD, SHOW, if has_kvm { &[] } else { QEMU }].concat();
    packages(&wanted, false)?;
    mounts(false)
}

/// Says what is about to be done as root, and asks where there is a terminal to answer at.
fn ask(what: &str, yes: bool) -> anyhow::Result<()> {
    let by = if rustix::process::geteuid().is_root() { "" } else { " with sudo" };
    if yes || !io::stdin().is_terminal() {
        eprintln!("==> About to {what}{by}");
        return Ok(());
    }
    eprint!("About to {what}{by}. Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !answer.trim().eq_ignore_ascii_case("y") {
        bail!("Not done: {what}");
    }
    Ok(())
}

//! `cargo xtask setup`: what building, showing and testing kvmeter need. Can be run again at any time; what is
//! there stays as it is.

use std::{
    fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::{Context as _, bail};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use xtask::lab::{DebianKernel, cache, find};

use crate::command::{as_root, cargo, root, run, step};

/// The last version that links with the LLVM of the pinned compiler itself; later ones want LLVM installed.
const BPF_LINKER: &str = "0.10.1";

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

/// Kernels that guests of the tests boot, as packages that depend on the newest one of their kind.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// Filesystems of the kernel that the programs, the tests and the inventory use.
const MOUNTS: [(&str, &str); 3] =
    [("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing"), ("debugfs", "/sys/kernel/debug")];

/// Debian's way to keep a package from starting its daemon while it is installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

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

/// The compiler's sources and the linker, for the BPF programs.
fn toolchain() -> anyhow::Result<()> {
    if !core_sources()?.exists() {
        let channel = channel()?;
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src", "--toolchain", &channel]);
        step("Installing the sources of Rust's core library", &mut rustup).context(
            "The BPF programs are built with their own core library; install the component rust-src",
        )?;
    }
    let linker_root = cache().context("HOME is not set")?.join(format!("bpf-linker-{BPF_LINKER}"));
    if !linker_root.join("bin/bpf-linker").exists() {
        let version = format!("bpf-linker@{BPF_LINKER}");
        let mut install = cargo(["install", &version, "--locked", "--root"]);
        // In the checkout, so that the pinned compiler builds it: it links with that compiler's LLVM.
        install.arg(&linker_root).current_dir(root());
        step("Building bpf-linker (about a minute, once)", &mut install)?;
    }
    Ok(())
}

fn core_sources() -> anyhow::Result<PathBuf> {
    let rustc = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(root())
        .output()
        .context("rustc cannot be started")?;
    let sysroot = String::from_utf8(rustc.stdout)?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml"))
}

/// The pinned compiler.
fn channel() -> anyhow::Result<String> {
    let text = fs::read_to_string(root().join("rust-toolchain.toml"))?;
    let channel = text.lines().find_map(|line| line.strip_prefix("channel = "));
    Ok(channel.context("rust-toolchain.toml names no channel")?.trim_matches('"').to_owned())
}

fn packages(wanted: &[&str], yes: bool) -> anyhow::Result<()> {
    if find("dpkg-query").is_none() || find("apt-get").is_none() {
        eprintln!("==> Not Debian: install by hand what is missing of {}", wanted.join(", "));
        return Ok(());
    }
    let missing: Vec<&str> = wanted.iter().copied().filter(|name| !is_installed(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    ask(&format!("install the packages {}", missing.join(", ")), yes)?;
    let _policy = NoDaemons::begin()?;
    let apt = || {
        let mut apt = as_root("env");
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
        apt
    };
    step("Reading the lists of packages", apt().arg("update"))?;
    let install = |more: &[&str]| {
        let mut apt = apt();
        apt.args(["install", "-y", "--no-install-recommends"]).args(more).args(&missing);
        apt
    };
    if step(&format!("Installing {}", missing.join(", ")), &mut install(&[])).is_ok() {
        return Ok(());
    }
    // QEMU's tools from elsewhere, such as backports that are configured no more, keep its other packages
    // from being installed.
    let release = release()?;
    let qemu = format!("qemu-utils/{release}");
    step(
        "Once more, with QEMU's tools of this release",
        &mut install(&["--allow-downgrades", &qemu]),
    )
}

/// Fetches the kernels for guests, which are not installed. Without them some tests are skipped.
fn kernels() -> anyhow::Result<()> {
    let Some(place) = DebianKernel::place().filter(|_| find("apt-get").is_some()) else {
        return Ok(());
    };
    let mut wanted = Vec::new();
    for kind in KERNELS {
        // Lists may be missing, or old enough to name what is there no more.
        let mut fetched = fetch(kind, &place);
        if !matches!(fetched, Ok(Some(_))) && rustix::process::geteuid().is_root() {
            let update = &mut Command::new("apt-get");
            fetched = step("Reading the lists of packages", update.args(["-q", "update"]))
                .and_then(|()| fetch(kind, &place));
        }
        // Nothing is built with it.
        match fetched {
            Ok(Some(release)) => wanted.push(release),
            Ok(None) => eprintln!("==> No package {kind}: what needs its kernel is not tested"),
            Err(error) => eprintln!("==> {error:#}: what needs {kind} is not tested"),
        }
    }
    // Those that newer ones have replaced, if that is known of all.
    let is_old =
        |kernel: &&DebianKernel| wanted.len() == KERNELS.len() && !wanted.contains(&kernel.release);
    for kernel in DebianKernel::all().iter().filter(is_old) {
        fs::remove_dir_all(place.join(&kernel.release))?;
    }
    Ok(())
}

/// Fetches the newest kernel of a kind, if it is not there. Its release; `None` = there is no such kind.
fn fetch(kind: &str, place: &Path) -> anyhow::Result<Option<String>> {
    let Some(package) = newest(kind)? else { return Ok(None) };
    let release = package.trim_start_matches("linux-image-").to_owned();
    if !place.join(&release).exists() {
        fs::create_dir_all(place)?;
        let fetched = tempfile::tempdir_in(place)?;
        let mut download = Command::new("apt-get");
        download.args(["-q", "download", &package]).current_dir(&fetched);
        step(&format!("Fetching {package}"), &mut download)?;
        let file = fs::read_dir(&fetched)?.next().context("apt-get fetched nothing")??;
        let unpacked = fetched.path().join("unpacked");
        run(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&unpacked))?;
        fs::rename(unpacked, place.join(&release))?;
    }
    Ok(Some(release))
}

/// The package that one depends on which itself is empty.
fn newest(kind: &str) -> anyhow::Result<Option<String>> {
    let told = Command::new("apt-cache").args(["depends", kind]).output()?;
    let told = String::from_utf8(told.stdout)?;
    let mut depends = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.find(|name| name.starts_with("linux-image-")).map(str::to_owned))
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn release() -> anyhow::Result<String> {
    let text = fs::read_to_string("/etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release has no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// Daemons that are installed meanwhile are not started: those that the demo and the tests need they start
/// themselves, beside whatever runs on the host. A policy that is there already stays.
struct NoDaemons {
    is_ours: bool,
}

impl NoDaemons {
    fn begin() -> anyhow::Result<Self> {
        const FORBID: &str = "#!/bin/sh\n# Of `cargo xtask setup`; it removes this.\nexit 101\n";
        if let Ok(text) = fs::read_to_string(POLICY) {
            // One of ours was left by a setup that was killed.
            return Ok(Self { is_ours: text == FORBID });
        }
        // Ctrl-C ends apt, and not this, which has something to clean up.
        for signal in [SIGINT, SIGTERM] {
            signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
        }
        let policy = tempfile::NamedTempFile::new()?;
        fs::write(policy.path(), FORBID)?;
        let mut install = as_root("install");
        install.args(["-m", "755", "-o", "root", "-g", "root"]).arg(policy.path()).arg(POLICY);
        run(&mut install)?;
        Ok(Self { is_ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = run(as_root("rm").arg(POLICY))
        {
            eprintln!("{POLICY} keeps daemons from starting; remove it by hand: {error}");
        }
    }
}

fn mounts(yes: bool) -> anyhow::Result<()> {
    let mounted = fs::read_to_string("/proc/self/mounts")?;
    let is_there = |kind, place| {
        mounted.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(place) && fields.next() == Some(kind)
        })
    };
    let missing: Vec<_> =
        MOUNTS.into_iter().filter(|&(kind, place)| !is_there(kind, place)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(kind, place)| format!("{kind} on {place}")).collect();
    ask(&format!("mount {}", names.join(", ")), yes)?;
    for (kind, place) in missing {
        step(&format!("Mounting {place}"), as_root("mount").args(["-t", kind, kind, place]))?;
    }
    Ok(())
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

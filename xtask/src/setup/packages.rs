//! Debian's packages, and on other systems the programs in them.

use std::{
    fmt, fs,
    process::Command,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use xtask::lab::find;

use super::consent::agree;
use crate::command::{as_root, run, step};

/// A package of Debian.
#[derive(Debug)]
pub(super) struct Package {
    pub(super) name: &'static str,
    /// What of it is used, and tells on other systems whether it is there.
    part: Part,
}

#[derive(Debug)]
enum Part {
    Program(&'static str),
    /// A library, by its name for pkg-config.
    Library(&'static str),
    /// A module of Python.
    Module(&'static str),
}

const fn program(name: &'static str, program: &'static str) -> Package {
    Package { name, part: Part::Program(program) }
}

/// For the build: the library of libvirt.
pub(super) const BUILD: &[Package] = &[
    Package { name: "libvirt-dev", part: Part::Library("libvirt") },
    program("pkg-config", "pkg-config"),
];

/// For the demo: the master and its tools.
pub(super) const SHOW: &[Package] = &[program("snmpd", "snmpd"), program("snmp", "snmpget")];

/// For the demo's guests on a machine without KVM, and for the tests.
pub(super) const QEMU: &[Package] = &[program("qemu-system-x86", "qemu-system-x86_64")];

/// What the tests and benchmarks use beside that.
pub(super) const TEST: &[Package] = &[
    program("binutils", "strip"),
    program("bpftool", "bpftool"),
    program("busybox-static", "busybox"),
    program("e2fsprogs", "mkfs.ext4"),
    program("fio", "fio"),
    program("iproute2", "ip"),
    program("libcap2-bin", "capsh"),
    program("libvirt-clients", "virsh"),
    program("libvirt-daemon-system", "libvirtd"),
    Package { name: "python3-pip", part: Part::Module("pip") },
    program("python3-pysmi", "mibdump"),
    program(QEMU_TOOLS, "qemu-img"),
    program("smitools", "smilint"),
    program("snmptrapd", "snmptrapd"),
    program("strace", "strace"),
];

const QEMU_TOOLS: &str = "qemu-utils";

/// Debian's way to keep a package from starting its daemon while it is installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Part::Program(program) => write!(f, "{program} ({} on Debian)", self.name),
            Part::Library(library) => write!(f, "the library {library} ({} on Debian)", self.name),
            Part::Module(module) => {
                write!(f, "Python's module {module} ({} on Debian)", self.name)
            }
        }
    }
}

impl Package {
    /// Whether it is there: to Debian, or elsewhere by what is used of it.
    pub(super) fn is_there(&self) -> bool {
        if can_install() {
            return is_installed(self.name);
        }
        let succeeds = |program: &str, arguments: &[&str]| {
            Command::new(program).args(arguments).output().is_ok_and(|done| done.status.success())
        };
        match self.part {
            Part::Program(program) => find(program).is_some(),
            Part::Library(library) => succeeds("pkg-config", &["--exists", library]),
            Part::Module(module) => succeeds("python3", &["-c", &format!("import {module}")]),
        }
    }
}

/// Whether this system is Debian, or one of its kind.
pub(super) fn can_install() -> bool {
    find("dpkg-query").is_some() && find("apt-get").is_some()
}

/// Installs packages. No package is removed for them.
pub(super) fn install(missing: &[&Package], yes: bool) -> anyhow::Result<()> {
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let _policy = NoDaemons::begin()?;
    let apt = || {
        let mut apt = as_root("env");
        apt.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-q"]);
        apt
    };
    step("Reading the lists of packages", apt().arg("update"))?;
    let install = |more: &[&str]| {
        let mut apt = apt();
        apt.args(["install", "-y", "--no-remove", "--no-install-recommends"]);
        apt.args(more).args(&names);
        apt
    };
    let done = step(&format!("Installing {}", names.join(", ")), &mut install(&[]));
    if done.is_err() && is_installed(QEMU_TOOLS) {
        // Of another release, such as backports that are configured no more, it keeps QEMU's other packages from being
        // installed.
        let release = release()?;
        let what = format!(
            "try once more, with the version of {QEMU_TOOLS} of {release} in place of the one that is installed"
        );
        agree(&[what], yes)?;
        let tools = format!("{QEMU_TOOLS}/{release}");
        run(&mut install(&["--allow-downgrades", &tools])).context(REFUSED)
    } else {
        done.context(REFUSED)
    }
}

const REFUSED: &str = "apt-get says above why it installs nothing. If packages would have to be removed: that is left to you \
                       (--no-remove)";

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

//! Debian's packages.

use std::{
    fs,
    process::Command,
    sync::{Arc, atomic::AtomicBool},
};

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use xtask::lab::find;

use super::ask;
use crate::command::{as_root, run, step};

/// Debian's way to keep a package from starting its daemon while it is installed.
const POLICY: &str = "/usr/sbin/policy-rc.d";

pub(super) fn packages(wanted: &[&str], yes: bool) -> anyhow::Result<()> {
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

//! What is checked without being run.

use std::process::{Command, Stdio};

use crate::{
    command::{self, cargo, step},
    lints, setup, tidy,
};

/// The features with which all packages are built.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Features {
    libvirt: bool,
}

impl Features {
    pub(crate) const ALL: Self = Self { libvirt: true };

    /// Without libvirt where its library is missing, which is said.
    pub(crate) fn of_machine() -> Self {
        let mut find = Command::new("pkg-config");
        find.args(["--exists", "libvirt"]).stdout(Stdio::null()).stderr(Stdio::null());
        let libvirt = find.status().is_ok_and(|status| status.success());
        if !libvirt {
            eprintln!(
                "==> pkg-config finds no libvirt: its source of VMs is left out (--no-default-features); \
                 `cargo xtask setup` installs libvirt-dev"
            );
        }
        Self { libvirt }
    }

    /// These arguments of cargo, with the features.
    pub(crate) fn of(self, arguments: &[&str]) -> Vec<String> {
        let off = (!self.libvirt).then_some("--no-default-features");
        arguments.iter().copied().chain(off).map(str::to_owned).collect()
    }
}

/// What needs no compiler.
pub(crate) fn of_text() -> anyhow::Result<()> {
    step("Format", &mut cargo(["fmt", "--all", "--check"]))?;
    eprintln!("==> Tidy");
    tidy::run()
}

/// The lints: of all packages for this machine, and of the programs for the kernel where what builds them is there.
pub(crate) fn lints(features: Features) -> anyhow::Result<()> {
    let mut lints = cargo(features.of(&["clippy", "--workspace", "--all-targets"]));
    step("Lints", lints.args(["--", "-D", "warnings"]))?;
    if !setup::has_core_sources() {
        eprintln!("==> No rust-src: lints of the BPF programs for their own target are left out");
        return Ok(());
    }
    step("Lints of the BPF programs", &mut lints::bpf())
}

/// What takes all CPUs, beside tests that mostly wait.
pub(crate) fn on_idle_cpus(features: Features) -> anyhow::Result<()> {
    let mut doc = cargo(features.of(&["doc", "--no-deps", "--document-private-items", "-q"]));
    doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links");
    for (what, command) in [
        ("Documentation", doc),
        ("Examples in the documentation", cargo(features.of(&["test", "--doc", "--quiet"]))),
    ] {
        step(what, &mut command::on_idle_cpus(&command))?;
    }
    Ok(())
}

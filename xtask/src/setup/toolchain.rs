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

/// The compiler's sources and the linker, for the BPF programs.
pub(super) fn toolchain() -> anyhow::Result<()> {
    if !core_sources()?.exists() {
        let channel = channel()?;
        let mut rustup = Command::new("rustup");
        rustup.args(["component", "add", "rust-src", "--toolchain", &channel]);
        step("Installing the sources of Rust's core library", &mut rustup).context(
            "The BPF programs are built with their own core library; install the component rust-src",
        )?;
    }
    let version = linker_version()?;
    let linker_root = cache().context("HOME is not set")?.join(format!("bpf-linker-{version}"));
    if !linker_root.join("bin/bpf-linker").exists() {
        let package = format!("bpf-linker@{version}");
        let mut install = cargo(["install", &package, "--locked", "--root"]);
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

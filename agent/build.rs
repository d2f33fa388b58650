//! Builds the BPF object that the agent carries.
//!
//! It needs two things that plain Rust does not bring: the `rust-src` component and `bpf-linker`. Where one
//! is missing an empty object takes its place, so that `cargo check`, `clippy` and the unit tests work
//! everywhere; the agent then says at run time that it was built without its probes. `cargo xtask setup`
//! installs both.
//!
//! The pinned stable compiler builds the object by itself (`RUSTC_BOOTSTRAP=1 -Z build-std=core`), so that
//! one toolchain serves for all. The object is the same for every profile and is kept in a target directory
//! of its own.

use std::{
    env,
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const BPF_LINKER: &str = "bpf-linker";
/// The manifest that says which version of the linker links with this compiler's LLVM.
const BPF_MANIFEST: &str = include_str!("../ebpf/Cargo.toml");
const TARGET: &str = "bpfel-unknown-none";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    for part in ["ebpf/src", "ebpf/Cargo.toml", "common/src", "common/Cargo.toml"] {
        println!("cargo:rerun-if-changed=../{part}");
    }
    for variable in ["KVMETER_BPF_LINKER", "PATH", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let object = out.join("kvmeter.bpf.o");
    match toolchain() {
        Ok(linker) => {
            println!("cargo:rerun-if-changed={}", linker.display());
            fs::copy(build(&linker, &out)?, object)?;
        }
        Err(missing) => {
            println!(
                "cargo:warning={missing}: this build has no BPF programs and counts nothing; \
                 run `cargo xtask setup` and build again"
            );
            fs::write(object, [])?;
        }
    }
    Ok(())
}

/// The linker to use, or what is missing.
fn toolchain() -> Result<PathBuf, String> {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let sysroot =
        Command::new(rustc).args(["--print", "sysroot"]).output().map_err(|e| e.to_string())?;
    let sysroot = String::from_utf8_lossy(&sysroot.stdout).trim().to_owned();
    let core = Path::new(&sysroot).join("lib/rustlib/src/rust/library/core/Cargo.toml");
    if !core.exists() {
        println!("cargo:rerun-if-changed={}", core.display());
        return Err("the rust-src component is not installed".to_owned());
    }
    let version = linker_version().ok_or("ebpf/Cargo.toml names no version of bpf-linker")?;
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .map(|cache| cache.join(format!("kvmeter/bpf-linker-{version}/bin")));
    if let Some(cached) = &cache {
        println!("cargo:rerun-if-changed={}", cached.join(BPF_LINKER).display());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::var_os("KVMETER_BPF_LINKER")
        .map(PathBuf::from)
        .into_iter()
        .chain(cache.into_iter().chain(env::split_paths(&path)).map(|dir| dir.join(BPF_LINKER)))
        .find(|linker| is_usable(linker, version))
        .ok_or_else(|| format!("{BPF_LINKER} {version} is not installed"))
}

/// `None`: the manifest has no line of it.
fn linker_version() -> Option<&'static str> {
    // A parser of TOML would be built for this line alone.
    let lines = BPF_MANIFEST.lines().filter_map(|line| line.split_once(" = "));
    lines.filter(|(key, _)| *key == BPF_LINKER).map(|(_, version)| version.trim_matches('"')).next()
}

/// Whether it is that version: others link with another LLVM than this compiler's.
fn is_usable(linker: &Path, version: &str) -> bool {
    Command::new(linker)
        .arg("--version")
        .output()
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(version))
}

fn build(linker: &Path, out: &Path) -> Result<PathBuf, Box<dyn Error>> {
    // OUT_DIR is TARGET_DIR/PROFILE/build/PACKAGE/out.
    let target_dir = out.ancestors().nth(4).unwrap_or(out).join("bpf");
    // No BTF of its own: the maps' sizes are in their definitions, and the linker leaves names of Rust's
    // generic unions in it that the kernel refuses.
    let flags = [format!("-Clinker={}", linker.display()), "-Ctarget-cpu=v3".to_owned()];
    let manifest = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("../ebpf/Cargo.toml");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--quiet", "--release", "-Zbuild-std=core", "--target", TARGET])
        .arg("--manifest-path")
        .arg(manifest)
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
        .env_remove("RUSTC")
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("CARGO_BUILD_TARGET")
        .status()?;
    if !status.success() {
        return Err("the BPF programs did not build".into());
    }
    Ok(target_dir.join(TARGET).join("release/kvmeter-ebpf"))
}

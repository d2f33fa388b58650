//! `cargo xtask test`: everything that has to be green.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, bail};
use clap::Args;
use xtask::lab::{DebianKernel, find};

use crate::{
    command::{cargo, root, step},
    lints, setup,
};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tests whose names contain this
    filter: Option<String>,
    /// Leave out what is not a test: setup, format, lints, docs
    #[arg(long)]
    only_tests: bool,
}

/// What the runner printed, added up.
#[derive(Debug, Default)]
struct Count {
    passed: u64,
    failed: u64,
    skipped: u64,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    if !options.only_tests {
        if rustix::process::geteuid().is_root() {
            setup::run_all(&setup::Options { yes: true })?;
        }
        step("Format", &mut cargo(["fmt", "--all", "--check"]))?;
        step(
            "Lints",
            &mut cargo(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        )?;
        lints::bpf()?;
        let mut fuzz = cargo(["check", "--manifest-path", "agent/fuzz/Cargo.toml"]);
        step("Fuzz targets", fuzz.env("CARGO_TARGET_DIR", root().join("target/fuzz")))?;
        let mut doc = cargo(["doc", "--no-deps", "--document-private-items", "-q"]);
        step(
            "Documentation",
            doc.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
        )?;
        step(
            "BPF programs and release build",
            &mut cargo(["build", "--release", "-p", "kvmeter"]),
        )?;
    }
    let count = tests(options.filter.as_deref())?;
    println!("{} passed, {} failed, {} skipped", count.passed, count.failed, count.skipped);
    if count.failed > 0 || count.passed == 0 {
        bail!("not green");
    }
    Ok(())
}

/// Runs the tests one binary after the other, and within a binary one after the other: many of them load
/// programs and measure time.
fn tests(filter: Option<&str>) -> anyhow::Result<Count> {
    eprintln!("==> Tests");
    let mut tests = cargo(["test", "--workspace", "--no-fail-fast", "--"]);
    tests.args(["--nocapture", "--test-threads=1"]).args(filter);
    tests.env("KVMETER_REQUIRE", required());
    // Cargo tells on standard error which binary runs; both in one stream stay in order.
    let (reader, writer) = std::io::pipe()?;
    let mut running = tests
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .context("cargo cannot be started")?;
    drop(tests);
    let mut count = Count::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        println!("{line}");
        count.take(&line);
    }
    let status = running.wait()?;
    if !status.success() && count.failed == 0 {
        // Did not build, or a binary died.
        count.failed = 1;
    }
    Ok(count)
}

impl Count {
    /// `test result: ok. 12 passed; 0 failed; …`.
    fn take(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            for part in rest.split(['.', ';']) {
                let mut words = part.split_whitespace();
                if let (Some(number), Some(what)) = (words.next(), words.next())
                    && let Ok(number) = number.parse::<u64>()
                {
                    match what {
                        "passed" => self.passed += number,
                        "failed" => self.failed += number,
                        "ignored" => self.skipped += number,
                        _ => {}
                    }
                }
            }
        }
    }
}

/// What this machine has, so that a test that does not find it fails.
fn required() -> String {
    if let Ok(required) = env::var("KVMETER_REQUIRE") {
        return required;
    }
    let mut has = Vec::new();
    if rustix::process::geteuid().is_root() && Path::new("/sys/kernel/btf/vmlinux").exists() {
        has.push("ebpf");
    }
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        has.push("kvm");
    }
    if Path::new("/dev/loop-control").exists() {
        has.push("loop");
    }
    if !DebianKernel::all().is_empty() {
        has.push("kernels");
    }
    for (name, program) in [
        ("snmpd", "snmpd"),
        ("snmptrapd", "snmptrapd"),
        ("qemu", "qemu-system-x86_64"),
        ("smilint", "smilint"),
        ("strace", "strace"),
        ("fio", "fio"),
        ("pysmi", "mibdump"),
        ("libvirt", "libvirtd"),
    ] {
        if find(program).is_some() {
            has.push(name);
        }
    }
    has.join(",")
}

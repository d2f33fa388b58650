//! What counts here counts on other kernels, too: those of Debian 12, the older of which has no event of direct I/O. Both
//! take programs at functions of the kernel.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod lab;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use xtask::lab::{DebianKernel, Initramfs};

/// Tests of a kernel's hooks that need nothing but them.
const TESTS: [&str; 3] = ["counters", "images", "requests"];

/// Without those that want a CPU to themselves: one of these may be taken away for milliseconds.
const OPTIONS: &str = "--test-threads=1 --nocapture --skip readers_clock --skip at_rest_shows \
    --skip latencies";

/// A guest that QEMU runs without KVM is some ten times slower than its host.
const LIMIT: Duration = Duration::from_secs(300);

/// The programs of these tests, as they were built beside this one.
fn programs() -> Vec<PathBuf> {
    let own = env::current_exe().unwrap();
    let mut build = Command::new(env!("CARGO"));
    build.args(["test", "--quiet", "--no-run", "--message-format=json"]);
    build.args(TESTS.iter().flat_map(|test| ["--test", test]));
    build.args(own.ancestors().any(|dir| dir.ends_with("release")).then_some("--release"));
    build.current_dir(env!("CARGO_MANIFEST_DIR"));
    build.arg("--target-dir").arg(own.ancestors().nth(3).unwrap());
    let output = build.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().map(|line| serde_json::from_str(line).unwrap());
    let built: Vec<serde_json::Value> = messages.collect();
    let program = |test: &str| {
        let is_it = |message: &&serde_json::Value| message["target"]["name"] == test;
        let mut its = built.iter().filter(is_it).filter_map(|m| m["executable"].as_str());
        PathBuf::from(its.next().unwrap())
    };
    TESTS.into_iter().map(program).collect()
}

/// A disk with an ext4 in it.
fn disk(dir: &Path) -> PathBuf {
    let path = dir.join("disk");
    fs::File::create(&path).unwrap().set_len(256 << 20).unwrap();
    assert!(
        Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&path).status().unwrap().success()
    );
    path
}

#[test]
fn the_programs_count_on_other_kernels() {
    require!("ebpf", "qemu", "kernels", "fio");
    let programs = programs();
    // Each has a CPU of the host for itself, if that has two.
    std::thread::scope(|scope| {
        for kernel in DebianKernel::all() {
            let programs = &programs;
            scope.spawn(move || test_on(&kernel, programs));
        }
    });
}

fn test_on(kernel: &DebianKernel, programs: &[PathBuf]) {
    let dir = tempfile::tempdir().unwrap();
    let files = Initramfs::of(kernel).unwrap();
    let target = env!("CARGO_TARGET_TMPDIR");
    let mut script = format!(
        "mkdir -p {target}\nmount -t ext4 /dev/vda {target}\n\
         export KVMETER_REQUIRE=ebpf,fio,loop KVMETER_LOOPS=2\n"
    );
    files.add_program(Path::new("/usr/bin/fio"), "bin").unwrap();
    for program in programs {
        files.add_program(program, "bin").unwrap();
        let name = program.file_name().unwrap().to_string_lossy();
        script += &format!("{name} {OPTIONS} && echo {name} is green\n");
    }
    let packed = files.pack(&script).unwrap();
    let said = kernel.run(&packed, Some(&disk(dir.path())), LIMIT).unwrap();
    // Indented: to whoever counts results, these are no tests of this machine.
    let said = said.replace('\n', "\n    ");
    let release = &kernel.release;
    for program in programs {
        let name = program.file_name().unwrap().to_string_lossy();
        assert!(said.contains(&format!("{name} is green")), "{release}: {said}");
    }
    assert!(!said.contains("skipped: "), "{said}");
    for way in ["psync Vfs", "libaio Aio", "pvsync Syscall", "io_uring IoUring", "Bdev counts"] {
        assert!(said.contains(way), "{release}: {way}: {said}");
    }
    assert_eq!(said.contains("libaio Dio"), kernel.version() >= (6, 6), "{release}: {said}");
    println!("Linux {release}: green");
}

//! Runs the counting tests on the kernels of Debian 12. The older one has no tracepoints of direct I/O in iomap; both
//! support fentry programs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use xtask::{
    harness::MODULES,
    lab::{DebianKernel, Initramfs},
};

/// Modules of this program whose tests need only a kernel's hooks.
const TESTS: [&str; 4] = ["counters", "counters::long_stretches", "images", "requests"];

/// Options of the test program. The skipped tests need a CPU of their own, where a vCPU may be preempted for milliseconds, or
/// util-linux.
const OPTIONS: &str = "--test-threads=1 --nocapture --color never --skip readers_clock \
    --skip at_rest_shows --skip latencies --skip a_real_time_thread";

/// Limit for the tests in a guest: without KVM, QEMU is some ten times slower than its host.
const LIMIT: Duration = Duration::from_secs(900);

/// A disk image with an ext4 filesystem.
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
    let program = env::current_exe().unwrap();
    // The guests run in parallel, each on a CPU of the host if there are two.
    std::thread::scope(|scope| {
        for kernel in DebianKernel::all() {
            let program = &program;
            scope.spawn(move || test_on(&kernel, program));
        }
    });
}

fn test_on(kernel: &DebianKernel, program: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let files = Initramfs::of(kernel).unwrap();
    let target = env!("CARGO_TARGET_TMPDIR");
    let mut script = format!(
        "mkdir -p {target}\nmount -t ext4 /dev/vda {target}\n\
         export KVMETER_REQUIRE=ebpf,fio,loop KVMETER_EMULATED=1\n"
    );
    files.add_program(Path::new("/usr/bin/fio"), "bin").unwrap();
    files.add_program(program, "bin").unwrap();
    let name = program.file_name().unwrap().to_string_lossy();
    for test in TESTS {
        script += &format!("{MODULES}={test} {name} {OPTIONS} && echo {test} is green\n");
    }
    let packed = files.pack(&script).unwrap();
    let said = kernel.run(&packed, Some(&disk(dir.path())), LIMIT).unwrap();
    // Indented, so that the results are not counted as tests of this machine.
    let said = said.replace('\n', "\n    ");
    let release = &kernel.release;
    for test in TESTS {
        assert!(said.contains(&format!("{test} is green")), "{release}: {said}");
    }
    assert!(!said.contains("... ignored"), "{said}");
    for way in ["psync Vfs", "libaio Aio", "pvsync Syscall", "io_uring IoUring", "Bdev counts"] {
        assert!(said.contains(way), "{release}: {way}: {said}");
    }
    assert_eq!(said.contains("libaio Dio"), kernel.version() >= (6, 6), "{release}: {said}");
    println!("Linux {release}: green");
}

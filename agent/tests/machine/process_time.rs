//! vmCpuTime has every thread of the VM's process: compared with the kernel's own sum, while the process is stopped.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs, io,
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use crate::lab::{
    counted::Counted,
    sandbox::temporary,
    stage::{Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, process_clock_ns, schedstat_ns},
};
use kvmeter::counters::Readings as _;
use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, TinyGuest, wait_until};

/// How far the served value may be from the kernel's, in ns.
const CLOSE_NS: u64 = 1_000_000;

/// Compares vmCpuTime with the kernel's own sum over the stopped process, and each vCPU with its thread.
fn compare(stage: &mut Stage, guest: &TinyGuest, index: u32, vcpus: &[u32]) {
    guest.child.signal(Signal::STOP).unwrap();
    let stopped = guest.tids().iter().all(|tid| {
        let stat = format!("/proc/{}/task/{tid}/stat", guest.pid());
        let has_stopped = || fs::read_to_string(&stat).unwrap().contains(") T ").then_some(());
        wait_until(PATIENCE, "it has stopped", has_stopped).is_ok()
    });
    assert!(stopped);
    let mut seen = None;
    let is_same = wait_until(PATIENCE, "the same values", || {
        let served = stage.number(VM_CPU_TIME, &[index]).unwrap() * 1000;
        let kernel = process_clock_ns(guest.pid());
        seen = Some((served, kernel));
        (served.abs_diff(kernel) < CLOSE_NS).then_some(())
    });
    assert!(is_same.is_ok(), "served and the kernel's: {seen:?}");
    for vcpu in vcpus {
        let tid = guest.tids()[*vcpu as usize - 1];
        let served = stage.number(VM_CPU_CORE_TIME, &[index, *vcpu]).unwrap() * 1000;
        assert!(served.abs_diff(schedstat_ns(guest.pid(), tid)) < CLOSE_NS, "vCPU {vcpu}");
    }
    guest.child.signal(Signal::CONT).unwrap();
}

#[test]
fn the_time_of_a_first_thread_that_has_ended_stays_in_the_sum() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let guest = TinyGuest::start(&["--vmm-thread", "--headless", "--duty", "busy"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 1);
    wait_until(PATIENCE, "the first thread has ended", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", guest.pid())).unwrap();
        stat.contains(") Z ").then_some(())
    })
    .unwrap();
    compare(&mut stage, &guest, index, &[1]);
    let pid = guest.pid();
    drop(guest);
    wait_until(PATIENCE, "the VM is gone", || stage.index_of(pid).is_none().then_some(())).unwrap();
}

#[test]
fn a_vm_of_800_vcpus_has_them_all() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let duty = format!("{}busy", "idle,".repeat(799));
    let guest = TinyGuest::start(&["--vcpus", "800", "--duty", &duty, "--churn", "50"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 800);
    compare(&mut stage, &guest, index, &[1, 767, 800]);
}

#[test]
fn a_vm_with_more_threads_than_records_has_its_whole_time() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let options = ["--vcpus", "2", "--duty", "busy,idle", "--sleepers", "3700", "--churn", "100"];
    let guest = TinyGuest::start(&options).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 2);
    // Threads that start now find no record. They use 20 ms of CPU time or more.
    let before = process_clock_ns(guest.pid());
    let unrecorded =
        |stage: &Stage| stage.status()["probe"]["unrecorded_threads"].as_u64().unwrap();
    let first = unrecorded(&stage);
    wait_until(PATIENCE, "threads without a record", || {
        (unrecorded(&stage) > first + 200).then_some(())
    })
    .unwrap();
    assert!(process_clock_ns(guest.pid()) > before);
    compare(&mut stage, &guest, index, &[1, 2]);
}

#[test]
fn workers_that_the_kernel_starts_in_a_process_are_counted() {
    require!("ebpf", "fio");
    let dir = temporary();
    let image = dir.path().join("image");
    fs::File::create(&image).unwrap().write_all_at(&vec![1; 64 << 20], 0).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", "kill -STOP $$; exec fio \"$@\"", "fio", "--name=vm", "--thread"]);
    shell.args(["--ioengine=io_uring", "--force_async=1", "--rw=randread", "--bs=256k"]);
    shell.args(["--time_based", "--runtime=600", "--allow_file_create=0", "--iodepth=2"]);
    shell.arg(format!("--filename={}", image.display()));
    let child = Child::start(shell.stdout(Stdio::null())).unwrap();
    wait_until(PATIENCE, "it has stopped", || child.is_stopped().then_some(())).unwrap();
    let counted = Counted::process(child.pid(), &[]);
    counted.has_all_threads();
    child.signal(Signal::CONT).unwrap();
    let tasks = format!("/proc/{}/task", child.pid());
    let of_workers = || -> io::Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(&tasks)? {
            let task = task?.path();
            if fs::read_to_string(task.join("comm"))?.starts_with("iou-wrk") {
                let text = fs::read_to_string(task.join("schedstat"))?;
                sum += text.split(' ').next().unwrap().parse::<u64>().unwrap();
            }
        }
        Ok(sum)
    };
    wait_until(PATIENCE, "workers have used 300 ms", || {
        of_workers().is_ok_and(|ns| ns > 300_000_000).then_some(())
    })
    .unwrap();
    child.stop().unwrap();
    let mut seen = None;
    let is_same = wait_until(Duration::from_secs(10), "the same values", || {
        let (ours, kernel) =
            (counted.records.vm_time_ns(counted.vm), process_clock_ns(child.pid()));
        seen = Some((ours, kernel));
        ours.is_some_and(|ours| ours.abs_diff(kernel) < CLOSE_NS).then_some(())
    });
    assert!(is_same.is_ok(), "counted and the kernel's: {seen:?}");
    assert_eq!(counted.records.unrecorded(), 0, "each thread had a record");
}

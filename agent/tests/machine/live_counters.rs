//! Compares the counters that a manager reads about a KVM guest with the kernel's own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, thread,
    time::{Duration, Instant},
};

use crate::lab::stage::{
    Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, name, process_clock_ns, schedstat, schedstat_ns,
};
use xtask::lab::{PATIENCE, TinyGuest, wait_until};

/// CPU time that a vCPU uses while no agent runs, in nanoseconds.
const USED_ALONE_NS: u64 = 2_000_000_000;

/// How long the guest runs between two comparisons; `KVMETER_SOAK_S` sets it in seconds.
fn soak() -> Duration {
    let seconds = env::var("KVMETER_SOAK_S").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(2))
}

/// Compares the served values of a stopped guest with the kernel's, truncated to microseconds.
fn compare(stage: &mut Stage, guest: &TinyGuest, index: u32, when: &str) {
    guest.child.stop().unwrap();
    for (vcpu, &tid) in (1..).zip(guest.tids()) {
        let served = stage.number(VM_CPU_CORE_TIME, &[index, vcpu]).unwrap();
        let kernel = schedstat_ns(guest.pid(), tid);
        let difference = kernel.abs_diff(served * 1000);
        assert!(
            difference < 1000,
            "{when}, vCPU {vcpu}: {served} µs served, {kernel} ns in the kernel"
        );
    }
    guest.child.go_on().unwrap();
}

#[test]
fn a_stopped_guest_has_the_kernels_values_also_over_the_agents_end() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let guest = TinyGuest::start(&["--vcpus", "3", "--duty", "busy,half,idle"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 3);
    compare(&mut stage, &guest, index, "at once");
    thread::sleep(soak());
    compare(&mut stage, &guest, index, "after a while");

    stage.agent.end().unwrap();
    stage.agent.start().unwrap();
    let index = stage.wait_for_vm(guest.pid(), 3);
    compare(&mut stage, &guest, index, "after a restart");

    let before = schedstat_ns(guest.pid(), guest.tids()[0]);
    stage.agent.kill();
    wait_until(PATIENCE, "the busy vCPU has used its CPU while no agent ran", || {
        let used = schedstat_ns(guest.pid(), guest.tids()[0]) - before;
        (used > USED_ALONE_NS).then_some(())
    })
    .unwrap();
    stage.agent.start().unwrap();
    let index = stage.wait_for_vm(guest.pid(), 3);
    compare(&mut stage, &guest, index, "after a time without an agent");
    let status = stage.status();
    assert_eq!(status["probe"]["adopted"], true);
}

#[test]
fn two_gets_of_a_running_vcpu_differ_by_the_time_between_them() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let guest = TinyGuest::start(&["--duty", "busy"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 1);
    let core_time = name(VM_CPU_CORE_TIME, &[index, 1]);
    let path = format!("/proc/{}/task/{}/status", guest.pid(), guest.tids()[0]);
    let switches = || {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().filter(|line| line.contains("ctxt_switches"));
        lines
            .map(|line| line.split_whitespace().last().unwrap().parse::<u64>().unwrap())
            .sum::<u64>()
    };
    let schedstat = || schedstat(guest.pid(), guest.tids()[0]);
    let start = Instant::now();
    let mut undisturbed = 0;
    while undisturbed < 5 {
        if start.elapsed() > Duration::from_secs(60) {
            xtask::harness::ignore("the machine is too busy to leave a vCPU alone for 100 ms");
        }
        let (switches_before, [ran_before, waited_before]) = (switches(), schedstat());
        let first = stage.client.get(&[&core_time]).unwrap();
        thread::sleep(Duration::from_millis(100));
        let second = stage.client.get(&[&core_time]).unwrap();
        // By the kernel's own counts it ran, which is updated at each tick, and did not wait, which is when it gets its CPU.
        let [ran, waited] = schedstat();
        if switches() != switches_before || ran == ran_before || waited != waited_before {
            continue;
        }
        undisturbed += 1;
        let counted = second.values[0].unwrap() - first.values[0].unwrap();
        // The counter was read between request and response.
        let least = second.asked - first.answered;
        let most = second.answered - first.asked;
        let counted = Duration::from_micros(counted);
        let slack = Duration::from_micros(100);
        assert!(
            counted + slack >= least && counted <= most + slack,
            "{counted:?} counted in {least:?} to {most:?}"
        );
    }
}

#[test]
fn the_vms_total_has_the_threads_that_are_gone() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let guest = TinyGuest::start(&["--vcpus", "2", "--duty", "half", "--churn", "300"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 2);
    for round in 0..5 {
        thread::sleep(Duration::from_millis(700));
        guest.child.stop().unwrap();
        let served = stage.number(VM_CPU_TIME, &[index]).unwrap() * 1000;
        let kernel = process_clock_ns(guest.pid());
        let threads: u64 = guest.tids().iter().map(|&tid| schedstat_ns(guest.pid(), tid)).sum();
        guest.child.go_on().unwrap();
        let difference = kernel.abs_diff(served);
        assert!(
            difference <= kernel / 1000 + 1_000_000,
            "round {round}: {served} ns served, {kernel} ns in the kernel"
        );
        assert!(kernel > threads, "the threads that are gone have used something");
    }
}

#[test]
fn a_counter_never_goes_back_for_a_manager() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let guest = TinyGuest::start(&["--vcpus", "2", "--duty", "busy", "--churn", "200"]).unwrap();
    let index = stage.wait_for_vm(guest.pid(), 2);
    let names = [
        name(VM_CPU_TIME, &[index]),
        name(VM_CPU_CORE_TIME, &[index, 1]),
        name(VM_CPU_CORE_TIME, &[index, 2]),
    ];
    let names = names.each_ref().map(Vec::as_slice);
    let mut last = [0; 3];
    for _ in 0..3000 {
        let answer = stage.client.get(&names).unwrap();
        for (last, now) in last.iter_mut().zip(answer.values) {
            let now = now.unwrap();
            assert!(now >= *last, "{now} after {last}");
            *last = now;
        }
    }
}

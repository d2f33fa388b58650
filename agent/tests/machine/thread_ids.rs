//! Reused thread ids: no VM gets the CPU time of an earlier VM with the same ids.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::HashSet, fs};

use crate::lab::stage::{
    Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, VM_NUMBER, process_clock_ns, schedstat_ns,
};
use xtask::lab::TinyGuest;

const ROUNDS: u32 = 300;

/// Sets the id after which the kernel assigns the next one (pid_namespaces(7)), so that each guest gets the ids of the
/// previous one.
fn begin_ids_at(last: u32) {
    fs::write("/proc/sys/kernel/ns_last_pid", last.to_string()).unwrap();
}

#[test]
fn no_time_is_booked_for_the_wrong_vm() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let pid_max: u32 =
        fs::read_to_string("/proc/sys/kernel/pid_max").unwrap().trim().parse().unwrap();
    let first = pid_max - 2000;
    let (mut pids, mut tids) = (HashSet::new(), HashSet::<u32>::new());
    for round in 0..ROUNDS {
        begin_ids_at(first);
        // A guest that burns CPU, then one that halts: time of the first would show in the second at once.
        let is_busy = round % 2 == 0;
        let duty = if is_busy { "busy" } else { "idle" };
        let mut guest = TinyGuest::start(&["--vcpus", "2", "--duty", duty]).unwrap();
        pids.insert(guest.pid());
        tids.extend(guest.tids());
        let index = stage.wait_for_vm(guest.pid(), 2);
        if !is_busy {
            for (vcpu, &tid) in (1..).zip(guest.tids()) {
                let served = stage.number(VM_CPU_CORE_TIME, &[index, vcpu]).unwrap();
                let kernel = schedstat_ns(guest.pid(), tid);
                assert!(
                    kernel.abs_diff(served * 1000) < 1000,
                    "round {round}, vCPU {vcpu}: {served} µs served, {kernel} ns in the kernel"
                );
            }
            let served = stage.number(VM_CPU_TIME, &[index]).unwrap() * 1000;
            let kernel = process_clock_ns(guest.pid());
            assert!(
                served <= kernel + 1_000_000,
                "round {round}: {served} ns served for the VM, {kernel} ns in the kernel"
            );
        }
        guest.child.kill();
        stage.wait_for("the VM is gone", VM_NUMBER, &[], |number| number == Some(0));
    }
    println!("{ROUNDS} guests had {} process ids and {} thread ids", pids.len(), tids.len());
    assert!(pids.len() < 100 && tids.len() < 200, "ids were given again");
    let status = stage.status();
    assert_eq!(status["probe"]["events_lost"], 0);
    assert_eq!(status["probe"]["unrecorded_threads"], 0);
}

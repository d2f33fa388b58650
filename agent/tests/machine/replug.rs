//! A vCPU that is unplugged and plugged in again: its counters go on, whoever looks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, time::Duration};

use crate::lab::stage::{
    Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, name, process_clock_ns, schedstat_ns,
};
use xtask::lab::{PATIENCE, TinyGuest, wait_until};

/// CPU time that each thread of the vCPU uses at least.
const USED: Duration = Duration::from_millis(300);

/// How far the served values may be from the kernel's: its sum over ended threads lacks the last microseconds of each.
const CLOSE_NS: u64 = 1_000_000;

/// A guest with a vCPU that stays and one that comes and goes, and what a manager has seen of the latter.
struct Plugged {
    stage: Stage,
    guest: TinyGuest,
    index: u32,
    last: u64,
}

impl Plugged {
    fn new(options: &[&str]) -> Self {
        let stage = Stage::new();
        let guest = TinyGuest::start(&[&["--vcpus", "2", "--duty", "busy"], options].concat());
        let guest = guest.unwrap();
        let index = stage.wait_for_vm(guest.pid(), 2);
        Self { stage, guest, index, last: 0 }
    }

    /// vmCpuTime and vmCpuCoreTime of both vCPUs in one answer, in µs.
    fn get(&mut self) -> [Option<u64>; 3] {
        let names = [
            name(VM_CPU_TIME, &[self.index]),
            name(VM_CPU_CORE_TIME, &[self.index, 1]),
            name(VM_CPU_CORE_TIME, &[self.index, 2]),
        ];
        let values = self.stage.client.get(&names.each_ref().map(Vec::as_slice)).unwrap().values;
        let [total, first, second] = [values[0], values[1], values[2]];
        if let Some(second) = second {
            assert!(second >= self.last, "{} µs, then {second} µs", self.last);
            self.last = second;
            let sum = first.unwrap() + second;
            assert!(total.unwrap() + 1 >= sum, "{total:?} µs in all, {sum} µs of vCPUs");
        }
        [total, first, second]
    }

    /// Waits until the last vCPU's thread has used CPU time, by the kernel's own count.
    fn use_cpu(&self) {
        let tid = *self.guest.tids().last().unwrap();
        let before = schedstat_ns(self.guest.pid(), tid);
        wait_until(PATIENCE, "the vCPU has used CPU time", || {
            let used = schedstat_ns(self.guest.pid(), tid) - before;
            (used > USED.as_nanos().try_into().unwrap()).then_some(())
        })
        .unwrap();
    }

    /// Waits until the second row is there or not, while a manager reads.
    fn wait(&mut self, is_there: bool) {
        wait_until(PATIENCE, "the row comes or goes", || {
            let vm = self.stage.vm("pid", self.guest.pid())?;
            let rows = vm["vcpus"].as_array().unwrap().len();
            let value = self.get()[2];
            ((rows == 2) == is_there && value.is_some() == is_there).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}; the agent says:\n{}", self.stage.agent.log()));
    }

    fn unplug(&mut self) {
        self.use_cpu();
        self.guest.remove_vcpu().unwrap();
    }

    fn plug(&mut self) {
        self.guest.add_vcpu().unwrap();
        self.use_cpu();
    }

    fn start(&mut self, vcpus: usize) {
        self.stage.agent.start().unwrap();
        assert_eq!(self.stage.wait_for_vm(self.guest.pid(), vcpus), self.index);
    }

    /// Compares the sum of the vCPUs with what the kernel has of the process, but for the threads that run none.
    fn compare(&mut self, when: &str) {
        self.guest.child.stop().unwrap();
        let [_, first, second] = self.get();
        let served = (first.unwrap() + second.unwrap()) * 1000;
        let pid = self.guest.pid();
        let tids = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let tids = tids.map(|task| task.unwrap().file_name().to_str().unwrap().parse().unwrap());
        let others = tids.filter(|tid| !self.guest.tids().contains(tid));
        let of_others: u64 = others.map(|tid| schedstat_ns(pid, tid)).sum();
        let kernel = process_clock_ns(pid) - of_others;
        self.guest.child.go_on().unwrap();
        println!(
            "{when}: {} ns more than the kernel's {kernel} ns",
            i128::from(served) - i128::from(kernel)
        );
        assert!(
            served.abs_diff(kernel) < CLOSE_NS,
            "{when}: {served} ns, {kernel} ns by the kernel"
        );
    }
}

#[test]
fn the_time_of_a_vcpu_goes_on_after_it_was_plugged_in_again() {
    require!("ebpf", "kvm", "snmpd");
    let mut of = Plugged::new(&[]);
    of.compare("at first");
    for round in 0..3 {
        of.unplug();
        of.wait(false);
        of.plug();
        of.wait(true);
        of.compare(&format!("round {round}"));
    }
    // Without a moment between the two.
    of.unplug();
    of.plug();
    of.wait(true);
    of.compare("at once");
    of.stage.agent.end().unwrap();
    of.start(2);
    of.compare("after a restart");
}

#[test]
fn what_a_vcpu_used_before_is_known_to_an_agent_that_was_away() {
    require!("ebpf", "kvm", "snmpd");
    let mut of = Plugged::new(&[]);
    of.use_cpu();
    of.get();
    of.stage.agent.kill();
    of.unplug();
    of.start(1);
    of.plug();
    of.wait(true);
    of.compare("unplugged while away");

    of.unplug();
    of.wait(false);
    of.stage.agent.end().unwrap();
    of.plug();
    of.start(2);
    of.compare("plugged in while away");

    of.stage.agent.kill();
    of.unplug();
    of.plug();
    of.start(2);
    of.compare("both while away");

    of.stage.agent.kill();
    for _ in 0..3 {
        of.unplug();
        of.plug();
    }
    of.start(2);
    of.compare("three times while away");
    of.unplug();
    of.plug();
    of.wait(true);
    of.compare("and once more");
    assert_eq!(of.stage.status()["probe"]["adopted"], true);
}

#[test]
fn a_vcpu_that_is_plugged_in_often_has_two_records() {
    require!("ebpf", "kvm", "snmpd");
    let mut of = Plugged::new(&[]);
    let records = |of: &Plugged| of.stage.status()["probe"]["tables"].clone();
    of.unplug();
    of.plug();
    of.wait(true);
    let before = records(&of);
    for round in 0..40 {
        if round == 20 {
            of.stage.agent.kill();
        }
        of.guest.remove_vcpu().unwrap();
        of.guest.add_vcpu().unwrap();
    }
    of.start(2);
    of.wait(true);
    assert_eq!(records(&of), before);
    assert_eq!(of.stage.status()["probe"]["unrecorded_threads"], 0);
    let pid = of.guest.pid();
    drop(of.guest);
    wait_until(PATIENCE, "the VM is gone", || of.stage.index_of(pid).is_none().then_some(()))
        .unwrap();
    // Another VM with the same records has none of their times.
    let guest = TinyGuest::start(&["--vcpus", "2", "--duty", "idle"]).unwrap();
    let index = of.stage.wait_for_vm(guest.pid(), 2);
    let served = of.stage.number(VM_CPU_CORE_TIME, &[index, 2]).unwrap();
    let kernel = schedstat_ns(guest.pid(), guest.tids()[1]);
    assert!(kernel.abs_diff(served * 1000) < CLOSE_NS, "{served} µs, {kernel} ns");
}

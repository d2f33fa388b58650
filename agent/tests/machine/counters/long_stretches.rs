//! Threads that keep their CPU: between two switches the agent shows the clock, which may go away from the kernel's count.

use aya::maps::{Array, Map, MapData};
use kvmeter::counters::ThreadSlot;
use kvmeter_common::word;

use super::*;

/// Most that the word is ahead of the kernel's count: that count is brought up to date at each tick, and these tests run beside
/// others, also in guests without KVM.
const AHEAD: u64 = 200_000_000;

/// CPU time that the thread has before its word is put off.
const BEGINNING: u64 = 100_000_000;

/// The words of the thread records, as the kernel has them.
struct Words(Array<MapData, [u64; 8]>);

impl Words {
    fn of(probe: Probe) -> Self {
        Self(Array::try_from(Map::Array(probe.threads)).unwrap())
    }

    fn run(&self, slot: ThreadSlot) -> u64 {
        self.0.get(&u32::from(slot.record), 0).unwrap()[0]
    }

    /// Lets the word show the time that `shown` makes of it, if the thread keeps its CPU.
    fn set(&mut self, slot: ThreadSlot, shown: impl Fn(u64) -> u64) {
        let now = now();
        let mut record = self.0.get(&u32::from(slot.record), 0).unwrap();
        if word::is_running(record[0]) {
            record[0] = word::running(shown(word::shows(record[0], now)), now);
            self.0.set(u32::from(slot.record), record, 0).unwrap();
        }
    }
}

fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}

/// Puts the word of a running thread off the kernel's count, and waits until it is right although the thread has kept its CPU.
fn comes_back(off: impl Fn(u64) -> u64) {
    let pins = PinDir::new();
    let (records, registration, probe) = start(&pins);
    let mut words = Words::of(probe);
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    burner.burn();
    wait_until(PATIENCE, "it has run", || {
        (held.schedstat().unwrap().run_ns > BEGINNING).then_some(())
    })
    .unwrap();
    let mut has_kept_its_cpu = false;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_kept_its_cpu {
        if Instant::now() > deadline {
            xtask::harness::ignore("the machine is too busy to leave a thread alone for 100 ms");
        }
        let switches =
            || records.thread(slot).map(|thread| (thread.switches_in, thread.preemptions));
        let before = switches();
        words.set(slot, &off);
        let is_right = || {
            let kernel = held.schedstat().unwrap().run_ns;
            let (run, now) = (words.run(slot), now());
            let shown = word::shows(run, now);
            word::is_running(run) && shown + 1_000_000 > kernel && shown < kernel + AHEAD
        };
        let was_right = wait_until(Duration::from_secs(1), "the word is right", || {
            (switches() != before || is_right()).then_some(())
        });
        has_kept_its_cpu = switches() == before;
        assert!(was_right.is_ok(), "the word of a thread that keeps its CPU stays off");
    }
    burner.rest();
    burner.end();
}

#[test]
fn a_thread_that_keeps_its_cpu_does_not_run_ahead_of_the_kernels_count() {
    require!("ebpf");
    comes_back(|shown| shown + 100 * BEGINNING);
}

#[test]
fn a_thread_that_keeps_its_cpu_does_not_fall_behind_the_kernels_count() {
    require!("ebpf");
    comes_back(|shown| shown / 2);
}

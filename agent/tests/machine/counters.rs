//! The counters against the kernel's own, on threads of this very process.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod long_stretches;
mod sizes;

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use crate::lab::{PinDir, rounds};
use kvmeter::{
    counters::{ImageSlot, Readings as _, Records, VmSlot},
    counting::{HeldThread, Registration, RunState, Schedstat, SelfTest, Tracker as _},
    probe::{KERNEL_BTF, Method, Probe, Sizes},
};
use kvmeter_common::{ImageKey, LAYOUT, Layer};
use xtask::lab::{PATIENCE, wait_until};

/// A thread of this process, which outlives the test.
struct OwnThread(u32);

impl OwnThread {
    fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/self/task/{}/{name}", self.0))
    }
}

impl HeldThread for OwnThread {
    fn tid(&self) -> u32 {
        self.0
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        let text = self.file("schedstat")?;
        let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
        Ok(Schedstat { run_ns: words.next().unwrap(), wait_ns: words.next().unwrap() })
    }

    fn run_state(&self) -> io::Result<RunState> {
        let text = self.file("stat")?;
        let fields: Vec<&str> = text[text.rfind(')').unwrap() + 2..].split(' ').collect();
        Ok(RunState { runnable: fields[0] == "R", has_ended: false })
    }

    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
        let stat = self.file("stat");
        Box::new(move || {
            let text = stat.ok()?;
            let fields: Vec<&str> = text[text.rfind(')')? + 2..].split(' ').collect();
            fields[36].parse().ok().filter(|_| fields[38] == "0")
        })
    }
}

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

fn start(pins: &PinDir) -> (Arc<Records>, Registration<Arc<Records>>, Probe) {
    let probe = Probe::start(pins.path(), Path::new(KERNEL_BTF), Sizes::default()).unwrap();
    let records = Arc::new(Records::map(&probe).unwrap());
    (Arc::clone(&records), Registration::adopt(records), probe)
}

/// A thread that burns CPU while `busy` is set, and waits on a channel otherwise.
struct Burner {
    tid: u32,
    busy: Arc<AtomicBool>,
    wake: mpsc::Sender<()>,
    handle: thread::JoinHandle<()>,
}

impl Burner {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel();
        let busy = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&busy);
        let handle = thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            while woken.recv().is_ok() {
                while flag.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        Self { tid: told.recv().unwrap(), busy, wake, handle }
    }

    fn burn(&self) {
        self.busy.store(true, Ordering::Relaxed);
        self.wake.send(()).unwrap();
    }

    /// Stops the burning and waits until the thread sleeps.
    fn rest(&self) {
        self.busy.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(format!("/proc/self/task/{}/stat", self.tid))
            .unwrap()
            .contains(") S ")
        {
            assert!(Instant::now() < deadline, "the thread does not come to rest");
            thread::yield_now();
        }
    }

    fn end(self) {
        drop(self.wake);
        self.handle.join().unwrap();
    }
}

/// How often a thread runs for one comparison, at most.
const TRIES: u32 = 5;

#[test]
fn a_thread_at_rest_shows_exactly_what_the_kernel_shows() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    for round in 0..20 {
        let mut seen = None;
        // Time taken by an outer hypervisor or by interrupts counts as the thread's until it has run for as long without
        // being read: where the 2 ms are too short for that, the thread runs again.
        let is_exact = (0..TRIES).any(|_| {
            burner.burn();
            let until = Instant::now() + Duration::from_millis(7);
            while Instant::now() < until {
                records.vcpu_time_ns(slot);
            }
            thread::sleep(Duration::from_millis(2));
            burner.rest();
            // The kernel reports a thread as sleeping shortly before it leaves its CPU.
            let comes_to_rest = wait_until(Duration::from_secs(1), "the same values", || {
                let kernel = held.schedstat().unwrap();
                let ours = records.vcpu_time_ns(slot).unwrap();
                let wait = records.thread(slot).unwrap().wait_ns;
                let is_close = |wait: u64| wait.abs_diff(kernel.wait_ns) < 1000;
                let is_same = ours.abs_diff(kernel.run_ns) < 1000 && wait.is_some_and(is_close);
                seen = Some((ours, wait, kernel));
                is_same.then_some(())
            });
            comes_to_rest.is_ok()
        });
        assert!(is_exact, "round {round}: ours and the kernel's: {seen:?}");
    }
    burner.end();
}

#[test]
fn a_thread_that_stays_on_its_cpu_counts_with_the_readers_clock() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    // It already runs when it is registered: its CPU time is known only after a switch on its CPU.
    burner.burn();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    registration.settle(vm, &[&held], None);
    assert!(records.vcpu_time_ns(slot).is_some(), "known without waiting for the next switch");
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let reading = || (records.vcpu_time_ns(slot).unwrap(), records.thread(slot).unwrap());
        let kernel_before = held.schedstat().unwrap();
        let (start, (ran_before, before)) = (Instant::now(), reading());
        // Sleeps, because a running reader would take the CPU from other work.
        thread::sleep(Duration::from_millis(100));
        let (elapsed, (ran_after, after)) = (start.elapsed(), reading());
        // Only a stretch without a switch is conclusive; on a loaded machine that takes some attempts. By the kernel's own
        // count, which it updates at each tick, the thread ran in it, and did not wait.
        let kernel = held.schedstat().unwrap();
        let has_waited = kernel.wait_ns != kernel_before.wait_ns;
        if kernel.run_ns > kernel_before.run_ns
            && !has_waited
            && before.switches_in == after.switches_in
            && before.preemptions == after.preemptions
        {
            let grown = Duration::from_nanos(ran_after - ran_before);
            assert!(
                grown.abs_diff(elapsed) < Duration::from_micros(100),
                "{grown:?} in {elapsed:?}"
            );
            break;
        }
        if Instant::now() > deadline {
            burner.rest();
            burner.end();
            xtask::harness::ignore("the machine is too busy to leave a thread alone for 100 ms");
        }
    }
    burner.rest();
    burner.end();
}

#[test]
fn a_real_time_thread_that_runs_while_it_is_registered_counts_without_a_switch() {
    require!("ebpf");
    // The guests with other kernels have no util-linux.
    if std::process::Command::new("chrt").arg("--version").output().is_err() {
        xtask::harness::ignore("there is no chrt");
    }
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    // On its own CPU, and no thread but one of higher priority interrupts it.
    let chrt = |arguments: &[&str]| {
        let done = std::process::Command::new("chrt").args(arguments).status().unwrap();
        assert!(done.success());
    };
    let tid = burner.tid.to_string();
    burner.burn();
    chrt(&["-f", "-p", "1", &tid]);
    let held = OwnThread(burner.tid);
    wait_until(PATIENCE, "it runs", || held.run_state().unwrap().runnable.then_some(())).unwrap();
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    let is_known = wait_until(PATIENCE, "it is known", || {
        registration.settle(vm, &[&held], None).then_some(())
    });
    let reading = |_| (records.vcpu_time_ns(slot), held.schedstat().unwrap().run_ns);
    let [before, after] = [(); 2].map(|()| {
        thread::sleep(Duration::from_millis(30));
        reading(())
    });
    let switches = records.thread(slot).unwrap().switches_in;
    chrt(&["-o", "-p", "0", &tid]);
    burner.rest();
    burner.end();
    assert!(is_known.is_ok());
    println!("{before:?} {after:?}, {switches} switches");
    for (ours, kernel) in [before, after] {
        let late = kernel.abs_diff(ours.unwrap());
        assert!(late < 10_000_000, "{before:?} {after:?}: {late} ns");
    }
    assert!(after.0.unwrap() - before.0.unwrap() > 5_000_000, "{before:?} {after:?}");
}

#[test]
fn no_counter_goes_back_while_threads_migrate() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    burner.burn();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    registration.settle(vm, &[&held], None);
    let cpus = thread::available_parallelism().unwrap().get();
    let reads = rounds(250_000, 25_000);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let (mut vcpu, mut total) = (0, 0);
                    for _ in 0..reads {
                        let next = records.vcpu_time_ns(slot).unwrap();
                        assert!(next >= vcpu, "the vCPU's time went from {vcpu} to {next}");
                        vcpu = next;
                        let next = records.vm_time_ns(vm).unwrap();
                        assert!(next >= total, "the VM's time went from {total} to {next}");
                        total = next;
                    }
                })
            })
            .collect();
        let tid = rustix::process::Pid::from_raw(burner.tid.cast_signed());
        for cpu in (0..cpus).cycle() {
            let mut set = rustix::thread::CpuSet::new();
            set.set(cpu);
            rustix::thread::sched_setaffinity(tid, &set).unwrap();
            if readers.iter().all(thread::ScopedJoinHandle::is_finished) {
                break;
            }
            thread::yield_now();
        }
    });
    burner.rest();
    // The largest value returned is ahead of the exact one by the kernel's lag at a switch, and by what an outer hypervisor
    // took: until the thread has run for as long.
    let mut seen = (0, 0);
    let is_exact = (0..TRIES).any(|_| {
        seen = (records.vcpu_time_ns(slot).unwrap(), held.schedstat().unwrap().run_ns);
        let is_close = seen.0.abs_diff(seen.1) < 100_000;
        if !is_close {
            burner.burn();
            let has_made_up = || (held.schedstat().unwrap().run_ns >= seen.0).then_some(());
            wait_until(PATIENCE, "it has run for as long", has_made_up).unwrap();
            burner.rest();
        }
        is_close
    });
    assert!(is_exact, "ours and the kernel's: {seen:?}");
    burner.end();
}

#[test]
fn a_new_probe_adopts_what_an_old_one_counted() {
    require!("ebpf");
    let pins = PinDir::new();
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let (vm, slot) = {
        let (_records, registration, probe) = start(&pins);
        assert!(!probe.adopted);
        let vm = registration.track_vm(std::process::id()).unwrap();
        (vm, registration.track_thread(vm, &held, Some(3)).unwrap())
    };
    // Only the pins hold the maps now.
    burner.burn();
    thread::yield_now();
    burner.rest();
    let (records, registration, probe) = start(&pins);
    assert!(probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
    assert_eq!(registration.tracked_vms(), [(vm, std::process::id())]);
    assert_eq!(registration.track_vm(std::process::id()).unwrap(), vm);
    let again = registration.track_thread(vm, &held, Some(3)).unwrap();
    // The start of the thread was not in its record before its first event.
    assert_eq!((again.record, again.tid), (slot.record, slot.tid));
    assert_eq!(records.vcpu_time_ns(slot), Some(held.schedstat().unwrap().run_ns));
    burner.end();
}

/// `kernel.pid_max` before the test, restored when dropped.
struct PidMax(String);

impl PidMax {
    const FILE: &str = "/proc/sys/kernel/pid_max";

    fn raised() -> Self {
        let before = fs::read_to_string(Self::FILE).unwrap();
        let raised = before.trim().parse::<u32>().unwrap() + 4096;
        // The largest that the kernel allows stays what it is; a smaller one is no less a change.
        if fs::write(Self::FILE, raised.to_string()).is_err() {
            fs::write(Self::FILE, (raised - 8192).to_string()).unwrap();
        }
        Self(before)
    }
}

impl Drop for PidMax {
    fn drop(&mut self) {
        fs::write(Self::FILE, &self.0).unwrap();
    }
}

/// Counts a thread and an image, has the pins changed while no agent runs, and sees both go on.
fn counts_survive<T>(change: impl FnOnce(&Path) -> T) {
    let pins = PinDir::new();
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let key = |vm: VmSlot| ImageKey { vm: vm.0, device: 1, file: 2 };
    let (vm, slot, image) = {
        let (records, registration, _probe) = start(&pins);
        let vm = registration.track_vm(std::process::id()).unwrap();
        let slot = registration.track_thread(vm, &held, Some(3)).unwrap();
        (vm, slot, records.claim_image(key(vm), Layer::Call).unwrap())
    };
    let pinned = pins.path().join(format!("v{LAYOUT}"));
    let _changed = change(&pinned);
    let (records, registration, probe) = start(&pins);
    assert!(probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
    assert_eq!(records.images_of(key(vm)).collect::<Vec<_>>(), [image]);
    let again = registration.track_thread(vm, &held, Some(3)).unwrap();
    assert_eq!((again.record, again.tid), (slot.record, slot.tid));
    burner.burn();
    thread::yield_now();
    burner.rest();
    wait_until(PATIENCE, "it is counted", || {
        (records.vcpu_time_ns(again) == Some(held.schedstat().unwrap().run_ns)).then_some(())
    })
    .unwrap();
    burner.end();
    let names = fs::read_dir(pinned).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    assert!(names.iter().all(|name| !name.starts_with("new_")), "{names:?}");
}

#[test]
fn counts_survive_a_change_of_pid_max() {
    require!("ebpf");
    counts_survive(|_| PidMax::raised());
}

#[test]
fn counts_survive_the_loss_of_the_map_of_thread_ids() {
    require!("ebpf");
    counts_survive(|pinned| fs::remove_file(pinned.join("TID_SLOT")).unwrap());
}

#[test]
fn no_switch_and_no_end_is_missed_while_the_map_of_thread_ids_is_replaced() {
    require!("ebpf");
    let pins = PinDir::new();
    let [runs, ends] = [Burner::start(), Burner::start()];
    let [slot, ended] = {
        let (_records, registration, _probe) = start(&pins);
        let vm = registration.track_vm(std::process::id()).unwrap();
        [&runs, &ends].map(|burner| {
            burner.burn();
            burner.rest();
            registration.track_thread(vm, &OwnThread(burner.tid), Some(burner.tid)).unwrap()
        })
    };
    runs.burn();
    ends.burn();
    let _raised = PidMax::raised();
    let probe = Probe::start(pins.path(), Path::new(KERNEL_BTF), Sizes::default()).unwrap();
    // The programs alone see this: no agent has adopted the threads yet.
    runs.rest();
    ends.rest();
    ends.end();
    let records = Records::map(&probe).unwrap();
    wait_until(PATIENCE, "the record of the thread that has ended is free", || {
        records.thread(ended).is_none().then_some(())
    })
    .unwrap();
    let is_at_rest = wait_until(PATIENCE, "the other thread is at rest", || {
        let before = records.vcpu_time_ns(slot);
        thread::sleep(Duration::from_millis(1));
        (records.vcpu_time_ns(slot) == before).then_some(())
    });
    let kernel = OwnThread(runs.tid).schedstat().unwrap().run_ns;
    let ours = records.vcpu_time_ns(slot).unwrap();
    runs.end();
    assert!(is_at_rest.is_ok() && ours.abs_diff(kernel) < 1_000_000, "{ours}, {kernel}");
}

#[test]
fn threads_of_the_agent_lack_no_record_while_it_tests_programs() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, _registration, _probe) = start(&pins);
    let mut self_test = SelfTest::new(Arc::clone(&records));
    let is_over = AtomicBool::new(false);
    let mut tests = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                let _ = self_test.run(Method::Vfs);
                tests += 1;
            }
        });
        for _ in 0..2000 {
            thread::spawn(|| {}).join().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert_eq!(records.unrecorded(), 0, "in {tests} tests");
}

/// Tables of which the kernel refuses one.
fn huge() -> Sizes {
    Sizes { images: 1 << 40, ..Sizes::default() }
}

#[test]
fn a_size_that_the_kernel_refuses_ends_no_counting() {
    require!("ebpf");
    let pins = PinDir::new();
    let burner = Burner::start();
    let start_with = |sizes| Probe::start(pins.path(), Path::new(KERNEL_BTF), sizes);
    let vm = {
        let (_records, registration, _probe) = start(&pins);
        let vm = registration.track_vm(std::process::id()).unwrap();
        registration.track_thread(vm, &OwnThread(burner.tid), None).unwrap();
        vm
    };
    {
        let probe = start_with(huge()).unwrap();
        assert!(probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
        assert_eq!(probe.sizes, Sizes::default());
        let registration = Registration::adopt(Arc::new(Records::map(&probe).unwrap()));
        assert_eq!(registration.tracked_vms(), [(vm, std::process::id())]);
        registration.untrack_vm(vm);
    }
    let Err(error) = start_with(huge()) else { panic!("the kernel has made a huge table") };
    assert!(error.to_string().contains("limits.images"), "{error}");
    let probe = start_with(Sizes::of(16, 128, 256)).unwrap();
    assert!(!probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
    assert_eq!(probe.sizes, Sizes::of(16, 128, 256));
    burner.end();
}

#[test]
fn a_second_agent_with_the_same_pins_ends_with_a_message() {
    require!("ebpf");
    let pins = PinDir::new();
    let (_records, _registration, first) = start(&pins);
    let Err(error) = Probe::start(pins.path(), Path::new(KERNEL_BTF), Sizes::default()) else {
        panic!("two agents count with the same pins");
    };
    assert!(error.to_string().starts_with("Another kvmeter counts with the pins under"), "{error}");
    drop(first);
    assert!(start(&pins).2.adopted);
}

#[test]
fn records_that_nobody_counts_in_are_given_out_no_more() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &OwnThread(burner.tid), Some(0)).unwrap();
    burner.burn();
    wait_until(PATIENCE, "it is counted", || records.vcpu_time_ns(slot)).unwrap();
    assert!(Probe::detach(pins.path()).unwrap());
    assert_eq!((records.vcpu_time_ns(slot), records.vm_time_ns(vm)), (None, None));
    assert_eq!(records.disk_io(&[ImageSlot(0)]), None);
    burner.rest();
    burner.end();
}

#[test]
fn what_other_versions_have_pinned_is_removed() {
    require!("ebpf");
    let pins = PinDir::new();
    drop(start(&pins));
    let own = pins.path().join(format!("v{LAYOUT}"));
    let other = pins.path().join("v1");
    fs::create_dir(&other).unwrap();
    for (name, elsewhere) in
        [("sched_wakeup", own.join("link_of_old")), ("sched_process_exec", other.join("link_x"))]
    {
        fs::rename(own.join(format!("link_{name}")), elsewhere).unwrap();
    }
    let (.., probe) = start(&pins);
    assert!(probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
    assert!(!other.exists() && !own.join("link_of_old").exists());
    assert!(own.join("link_sched_wakeup").exists());
}

#[test]
fn the_end_of_a_thread_frees_its_record_and_keeps_its_time() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    burner.burn();
    let until = Instant::now() + Duration::from_millis(20);
    while Instant::now() < until {}
    burner.rest();
    let used = records.vcpu_time_ns(slot).unwrap();
    burner.end();
    let deadline = Instant::now() + Duration::from_secs(10);
    while records.thread(slot).is_some() {
        assert!(Instant::now() < deadline, "the record is not freed");
        thread::yield_now();
    }
    assert_eq!(records.vcpu_time_ns(slot), None);
    assert!(records.vm_time_ns(vm).unwrap() >= used);
    registration.untrack_vm(vm);
    assert_eq!(records.vm_time_ns(vm), None);
    assert!(registration.tracked_vms().is_empty());
}

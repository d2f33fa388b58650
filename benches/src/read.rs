//! What a reading of a counter takes, beside the other ways to the same number.

use std::{
    fs::File,
    io::Read as _,
    os::unix::fs::FileExt as _,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use kvmeter::counters::Readings as _;
use rustix::time::{ClockId, clock_gettime};

use crate::{
    measure::{Samples, Subject, compare, judge, print},
    tracked::{OwnThread, Tracked},
};

/// Threads of the larger VM: 16 vCPUs and 4 others.
const LARGE_VM: u32 = 20;
const SMALL_VM: u32 = 4;

/// At most so many ns.
const TARGET: f64 = 50.0;

/// How many rounds of the benchmark one call of virsh stands for.
const ROUNDS_PER_VIRSH: u32 = 10;
/// Calls by one virsh process, to tell the cost of a call from that of a process.
const CALLS: usize = 100;

/// Measures and prints.
pub(crate) fn run(rounds: u32) -> anyhow::Result<()> {
    let tracked = Tracked::start()?;
    let busy = Thread::start(true)?;
    let mut idle = Vec::new();
    let running = tracked.track_vcpu(&busy.thread)?;
    let mut at_rest = running;
    while idle.len() + 1 < SMALL_VM as usize {
        let thread = Thread::start(false)?;
        at_rest = tracked.track(&thread.thread)?;
        idle.push(thread);
    }
    let records = &tracked.records;
    for slot in [running, at_rest] {
        records.vcpu_time_ns(slot).context("A thread that is tracked has no value")?;
    }
    let schedstat = busy.thread.path("schedstat");
    let kept = File::open(&schedstat)?;
    let mut buffers = [[0; 128]; 2];
    let [first, second] = &mut buffers;
    let mut subjects = vec![
        Subject::new("vcpu_time_ns, on its CPU", || records.vcpu_time_ns(running)),
        Subject::new("vcpu_time_ns, at rest", || records.vcpu_time_ns(at_rest)),
        Subject::new(format!("vm_time_ns, {SMALL_VM} threads"), || records.vm_time_ns(tracked.vm)),
        Subject::new("the clock alone (CLOCK_MONOTONIC)", || clock_gettime(ClockId::Monotonic)),
        Subject::new("schedstat by pread, file kept open, not parsed", || kept.read_at(first, 0)),
        Subject::new("schedstat by open, read, close, not parsed", || {
            File::open(&schedstat).and_then(|mut file| file.read(second))
        }),
    ];
    compare(&mut subjects, rounds);
    print("a reading of one vCPU's time", &subjects);
    let mut targets: Vec<(String, Samples)> =
        subjects.drain(..3).map(|Subject { name, samples, .. }| (name, samples)).collect();
    drop(subjects);

    while idle.len() + 1 < LARGE_VM as usize {
        let thread = Thread::start(false)?;
        tracked.track(&thread.thread)?;
        idle.push(thread);
    }
    let mut large = [Subject::new(format!("vm_time_ns, {LARGE_VM} threads"), || {
        records.vm_time_ns(tracked.vm)
    })];
    compare(&mut large, rounds);
    print("a reading of a larger VM's time", &large);
    let [large] = large;
    targets.push((large.name.clone(), large.samples.clone()));

    match virsh(rounds.div_ceil(ROUNDS_PER_VIRSH)) {
        Ok(()) => {}
        Err(error) => println!("\n(virsh domstats is left out: {error:#})"),
    }
    println!();
    for (name, samples) in &targets {
        judge(name, samples, TARGET);
    }
    Ok(())
}

/// `virsh domstats --vcpu` over the VMs that libvirt runs now.
fn virsh(rounds: u32) -> anyhow::Result<()> {
    let vms = call("list --name --state-running")?;
    let count = String::from_utf8_lossy(&vms.stdout).split_whitespace().count();
    anyhow::ensure!(count > 0, "no VM runs under libvirt");
    let many = vec!["domstats --vcpu"; CALLS + 1].join("; ");
    let (mut process, mut one) = (Samples::default(), Samples::default());
    for _ in 0..rounds {
        let single = time(|| call("domstats --vcpu"))?;
        let all = time(|| call(&many))?;
        process.push(single.as_secs_f64() * 1e9);
        one.push(all.saturating_sub(single).as_secs_f64() * 1e9 / CALLS as f64);
    }
    println!(
        "\n{:<58} {:>26}",
        format!("virsh domstats --vcpu, VMs: {count}"),
        "ns: median (quartiles)"
    );
    println!("{:<58} {:>26}", "a virsh process", process.to_string());
    println!("{:<58} {:>26}", "a further call by the same process", one.to_string());
    Ok(())
}

fn time<R>(act: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

fn call(commands: &str) -> anyhow::Result<Output> {
    let output = Command::new("virsh")
        .args(["--quiet", "--connect", "qemu:///system", commands])
        .output()
        .context("virsh does not start")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "virsh: {}", said.trim());
    Ok(output)
}

/// A thread that burns CPU or sleeps until this is dropped.
struct Thread {
    thread: OwnThread,
    burn: Arc<AtomicBool>,
    _wake: mpsc::Sender<()>,
}

impl Thread {
    fn start(burns: bool) -> anyhow::Result<Self> {
        let burn = Arc::new(AtomicBool::new(burns));
        let flag = Arc::clone(&burn);
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel::<()>();
        thread::spawn(move || {
            if tell.send(OwnThread::current()).is_err() {
                return;
            }
            while flag.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            // Ends with an error when the sender is dropped.
            let _ = woken.recv();
        });
        Ok(Self { thread: told.recv().context("A thread did not start")?, burn, _wake: wake })
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.burn.store(false, Ordering::Relaxed);
    }
}

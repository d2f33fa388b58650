//! What the program at a task switch costs.
//!
//! Two threads on one CPU wake each other through pipes, some hundred thousand switches a second. All programs that
//! are compared are attached at the same time, so each round is the same for all of them. The kernel adds up
//! the time of each (`BPF_ENABLE_STATS`), its own counting included; an empty program has that too, and is
//! subtracted.

use std::{
    collections::HashMap,
    io::{PipeReader, PipeWriter, Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use aya::{
    Btf, Endianness,
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use kvmeter::{counters::Tracker as _, probe::KERNEL_BTF};
use rustix::thread::{CpuSet, sched_setaffinity};
use xtask::lab::{Child, PATIENCE, wait_until};

use crate::{
    empty::Empty,
    rounds::{Spread, print},
    threads::Counting,
};

const ROUNDS: usize = 15;
const ROUND: Duration = Duration::from_millis(300);

/// Debian's libbpf-tools, which do something similar at the same place. Their program at a task switch is looked for
/// among those that they load.
const OTHERS: [&str; 2] = ["runqlat", "cpudist"];

pub(crate) fn run() -> anyhow::Result<()> {
    println!(
        "switch: nanoseconds of the program at sched_switch, over an empty one, at each switch"
    );
    let _stats =
        enable_stats(Stats::RunTime).context("the kernel keeps no statistics of programs")?;
    let btf = Btf::parse_file(Path::new(KERNEL_BTF), Endianness::default())?;
    let before: Vec<u32> = programs()?.into_keys().collect();
    let counting = Counting::begin()?;
    let ours = new_at_switch(&before)?.context("the agent's program is not there")?;
    let mut empty = Empty::attach(&btf)?;
    let empty = empty.id()?;
    let others = start_others()?;

    let load = PingPong::start()?;
    let (mut untracked, mut tracked) = (Vec::new(), Vec::new());
    let mut beside = vec![Vec::new(); others.len()];
    for _ in 0..ROUNDS {
        let round = measure()?;
        untracked.push(round.over(empty, ours));
        let vm = counting.track_this_process()?;
        let round = measure()?;
        tracked.push(round.over(empty, ours));
        for (figures, other) in beside.iter_mut().zip(&others) {
            figures.push(round.over(empty, other.program));
        }
        counting.registration.untrack_vm(vm);
    }
    drop(load);
    print("threads that are not counted", Spread::of(untracked), Some(25.0));
    print("threads that are counted, one to another", Spread::of(tracked), Some(60.0));
    for (other, figures) in others.iter().zip(beside) {
        print(&format!("{} of libbpf-tools", other.name), Spread::of(figures), None);
    }
    println!();
    Ok(())
}

struct Other {
    name: &'static str,
    program: u32,
    _child: Child,
}

fn start_others() -> anyhow::Result<Vec<Other>> {
    let mut started = Vec::new();
    for name in OTHERS {
        let before: Vec<u32> = programs()?.into_keys().collect();
        let mut command = Command::new(name);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        let Ok(child) = Child::start(&mut command) else {
            println!("({name} is left out: it is not installed; Debian has it in libbpf-tools)");
            continue;
        };
        let found = wait_until(PATIENCE, name, || new_at_switch(&before).ok().flatten());
        match found {
            Ok(program) => started.push(Other { name, program, _child: child }),
            Err(error) => println!("({name} is left out: {error})"),
        }
    }
    Ok(started)
}

/// The program at sched_switch that was loaded since.
fn new_at_switch(before: &[u32]) -> anyhow::Result<Option<u32>> {
    for program in loaded_programs() {
        let program = program?;
        let is_at_switch =
            program.name_as_str().is_some_and(|name| name.starts_with("sched_switch"));
        if is_at_switch && !before.contains(&program.id()) {
            return Ok(Some(program.id()));
        }
    }
    Ok(None)
}

/// Runs and time of each program so far.
fn programs() -> anyhow::Result<HashMap<u32, (u64, Duration)>> {
    loaded_programs()
        .map(|program| {
            let program = program?;
            Ok((program.id(), (program.run_count(), program.run_time())))
        })
        .collect()
}

/// What happened in one round.
struct Round {
    begin: HashMap<u32, (u64, Duration)>,
    end: HashMap<u32, (u64, Duration)>,
}

fn measure() -> anyhow::Result<Round> {
    let begin = programs()?;
    thread::sleep(ROUND);
    Ok(Round { begin, end: programs()? })
}

impl Round {
    /// Nanoseconds of each run.
    fn ns(&self, program: u32) -> f64 {
        let (Some(begin), Some(end)) = (self.begin.get(&program), self.end.get(&program)) else {
            return f64::NAN;
        };
        let runs = u32::try_from(end.0 - begin.0).unwrap_or(u32::MAX);
        (end.1 - begin.1).as_secs_f64() * 1e9 / f64::from(runs)
    }

    fn over(&self, empty: u32, program: u32) -> f64 {
        self.ns(program) - self.ns(empty)
    }
}

/// Two threads that wake each other, until this is dropped.
struct PingPong {
    end: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl PingPong {
    fn start() -> anyhow::Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        let (one_in, one_out) = std::io::pipe()?;
        let (two_in, two_out) = std::io::pipe()?;
        let ends = [(one_in, two_out.try_clone()?), (two_in, one_out)];
        // The first word.
        let mut first = two_out;
        first.write_all(&[1])?;
        let threads = ends
            .into_iter()
            .map(|(from, to)| {
                let end = Arc::clone(&end);
                thread::spawn(move || play(from, to, &end))
            })
            .collect();
        Ok(Self { end, threads })
    }
}

impl Drop for PingPong {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // One that is still reading gets the end of the pipe when the other closes it.
            let _ = thread.join();
        }
    }
}

fn play(mut from: PipeReader, mut to: PipeWriter, end: &AtomicBool) {
    let mut cpu = CpuSet::new();
    cpu.set(0);
    // Without it there are fewer switches, no wrong ones.
    let _ = sched_setaffinity(None, &cpu);
    let mut word = [0];
    while !end.load(Ordering::Relaxed) {
        if from.read_exact(&mut word).is_err() || to.write_all(&word).is_err() {
            return;
        }
    }
}

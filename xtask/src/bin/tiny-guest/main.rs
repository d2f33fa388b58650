//! The smallest VM that is one: a few octets of real-mode code on KVM, for the demo, the tests and the
//! benchmarks. It starts within milliseconds and uses as much CPU as it is told to.

mod disk;
mod duty;
mod first_thread;
mod machine;

use std::{
    fs::File,
    io::{self, BufRead as _, Write as _},
    num::NonZeroU32,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Command},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Parser;
use disk::Config;
use duty::Duty;
use machine::Machine;
use rustix::process::Signal;

/// A VM without devices but disks, on KVM
#[derive(Debug, Parser)]
struct Options {
    /// Shown nowhere but in the command line
    #[arg(long, visible_alias = "id")]
    name: Option<String>,
    /// Configuration file in Firecracker's format: its drives are the VM's disks
    #[arg(long)]
    config_file: Option<PathBuf>,
    /// Rounds of requests on each disk in a second: a read of 4 KiB, and a write of 16 KiB if it is not read-only
    #[arg(long, default_value_t = 0)]
    requests: u32,
    /// vCPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    vcpus: u32,
    /// What the vCPUs do: busy, half, idle, with commas between them; the last is for all that follow
    #[arg(long, value_delimiter = ',', default_value = "idle")]
    duty: Vec<Duty>,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    memory: u32,
    /// Threads that the VMM starts and ends in a second, beside those of the vCPUs
    #[arg(long, default_value_t = 0)]
    churn: u32,
    /// Threads of the VMM that sleep
    #[arg(long, default_value_t = 0)]
    sleepers: u32,
    /// vCPUs' threads have the name of the process
    #[arg(long)]
    unnamed: bool,
    /// The VM is made by a thread of its own, as Cloud Hypervisor does it
    #[arg(long)]
    vmm_thread: bool,
    /// With --vmm-thread: the first thread uses 300 ms of CPU time and ends, and the others go on
    #[arg(long, requires = "vmm_thread")]
    headless: bool,
    /// It opens this file, and executes another program as soon as it is ready: closing the file is a part of that
    #[arg(long)]
    exec_over: Option<PathBuf>,
}

/// Runs until its input ends, it gets SIGTERM, or its parent is gone. `add` and `remove` on its input plug and
/// unplug a vCPU.
fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    if !options.vmm_thread {
        return run(&options);
    }
    let is_headless = options.headless;
    let vmm = thread::Builder::new().name("vmm".to_owned()).spawn(move || run(&options))?;
    if is_headless {
        spin(Duration::from_millis(300));
        first_thread::end();
    }
    vmm.join().unwrap_or_else(|_| bail!("the VMM has panicked"))
}

fn run(options: &Options) -> anyhow::Result<()> {
    // Before the VM: descriptors are closed in ascending order.
    let closed_in_exec = options.exec_over.as_deref().map(File::open).transpose()?;
    // A VMM has its disks open before it makes the VM.
    let config = options.config_file.as_deref().map(Config::read).transpose()?;
    let disks = config.map(|config| config.open()).transpose()?.unwrap_or_default();
    let mut machine = Machine::new(usize::try_from(options.memory)? << 20, !options.unnamed)?;
    let last = *options.duty.last().context("--duty names nothing")?;
    for id in 0..options.vcpus {
        let place = usize::try_from(id)?;
        machine.add_vcpu(options.duty.get(place).copied().unwrap_or(last))?;
    }
    for _ in 0..options.sleepers {
        let sleeper = thread::Builder::new().name("sleeper".to_owned()).stack_size(64 << 10);
        sleeper.spawn(|| thread::sleep(Duration::MAX))?;
    }
    if options.churn > 0 {
        let pause = Duration::from_secs(1) / options.churn;
        thread::Builder::new().name("churn".to_owned()).spawn(move || churn(pause))?;
    }
    if let Some(rate) = NonZeroU32::new(options.requests) {
        for disk in disks {
            thread::Builder::new().name("disk".to_owned()).spawn(move || disk.serve(rate))?;
        }
    }
    say("ready", &machine)?;
    if closed_in_exec.is_some() {
        return Err(Command::new("sleep").arg("1000").exec().into());
    }
    for line in io::stdin().lock().lines() {
        match line?.trim() {
            "add" => machine.add_vcpu(last)?,
            "remove" => machine.remove_vcpu()?,
            other => bail!("{other:?} is neither add nor remove"),
        }
        say("vcpus", &machine)?;
    }
    Ok(())
}

fn say(what: &str, machine: &Machine) -> anyhow::Result<()> {
    let tids: Vec<String> = machine.tids().map(|tid| tid.to_string()).collect();
    writeln!(io::stdout(), "{what} pid={} tids={}", process::id(), tids.join(","))?;
    Ok(io::stdout().flush()?)
}

fn churn(pause: Duration) {
    loop {
        let worker = thread::spawn(|| spin(Duration::from_micros(100)));
        thread::sleep(pause);
        // It cannot panic.
        let _ = worker.join();
    }
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        std::hint::spin_loop();
    }
}

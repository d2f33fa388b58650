//! `cargo xtask demo`: the whole way, from two guests to a manager's tables, in half a minute.

use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use signal_hook::consts::{SIGINT, SIGTERM};
use xtask::lab::{
    Accelerator, Agent, Child, PATIENCE, Qemu, Snmpd, TinyGuest, missing, wait_until,
};

use crate::{
    build,
    command::{as_root, root, step},
    setup,
};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Seconds between the two looks at the tables
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Everything is installed and built: what runs as root when the demo was not started by root
    #[arg(long, hide = true)]
    prepared: bool,
    /// The agent that was built for it
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

const CPU_TIME: &str = "VM-MIB::vmCpuCoreTime";

/// Shows it. Everything that is started is ended, and everything that is written is removed, also on
/// Ctrl-C.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let has_kvm = Path::new("/dev/kvm").exists();
    if !options.prepared {
        setup::run_for_demo(has_kvm)?;
        build::run()?;
        if has_kvm {
            TinyGuest::build()?;
        }
        if !rustix::process::geteuid().is_root() {
            let seconds = options.seconds.to_string();
            let mut again = as_root(env::current_exe()?);
            again
                .args(["demo", "--prepared", "--seconds", &seconds, "--agent"])
                .arg(build::agent());
            return step("Going on as root: programs are loaded into the kernel", &mut again);
        }
    }
    if let Some(reason) = missing("ebpf") {
        bail!("The demo loads BPF programs: {reason}. `cargo xtask setup` mends what it can");
    }

    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let dir = tempfile::tempdir()?;
    let program = options.agent.clone().unwrap_or_else(build::agent);
    let shown = show(dir.path(), program, has_kvm, options.seconds, &interrupted);
    if interrupted.load(Ordering::Relaxed) {
        bail!("interrupted; everything is ended and removed");
    }
    shown
}

fn show(
    dir: &Path,
    program: PathBuf,
    has_kvm: bool,
    seconds: u64,
    interrupted: &AtomicBool,
) -> anyhow::Result<()> {
    say("Starting a private snmpd on a port of loopback");
    let snmpd = Snmpd::start(dir, "")?;
    say(
        "Starting two guests: \"busy\" runs all the time, \"half\" half of it on one vCPU and halts on the other",
    );
    let _guests = guests(has_kvm)?;
    say("Starting the agent");
    let mut agent = Agent::new(dir, &snmpd.agentx_address(), "[inventory]\nlibvirt = \"\"\n")?;
    agent.use_program(program);
    agent.start()?;
    let manager = Manager::new(dir, &agent, &snmpd)?;
    wait_until(PATIENCE, "the guests' vCPUs are in vmCpuTable", || {
        manager.times().ok().filter(|times| times.len() >= 3 || !has_kvm && times.len() >= 2)
    })?;

    say("The tables, as a manager sees them");
    manager.tables()?;
    let before = manager.times()?;
    let start = Instant::now();
    say(&format!("The same after {seconds} s"));
    while start.elapsed() < Duration::from_secs(seconds) {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    manager.tables()?;
    let after = manager.times()?;
    let elapsed = start.elapsed();
    say("What changed meanwhile");
    changes(&before, &after, elapsed);
    say("The agent's own view");
    let status = agent.ask("status", &[])?;
    std::io::stdout().write_all(&status.stdout)?;
    say("Ending and removing everything");
    agent.end()?;
    Ok(())
}

fn say(what: &str) {
    println!("\n==> {what}");
}

/// Whatever runs the guests.
fn guests(has_kvm: bool) -> anyhow::Result<Vec<Child>> {
    if has_kvm {
        let busy = TinyGuest::start(&["--name", "busy", "--duty", "busy"])?;
        let half = TinyGuest::start(&["--name", "half", "--vcpus", "2", "--duty", "half,idle"])?;
        return Ok(vec![busy.into_child(), half.into_child()]);
    }
    println!(
        "(no /dev/kvm here: QEMU runs them without it, and what their firmware does is what is seen)"
    );
    let start =
        |name| Ok::<_, xtask::lab::LabError>(Qemu::start(name, Accelerator::Tcg, &[])?.child);
    Ok(vec![start("busy")?, start("half")?])
}

/// A manager: net-snmp's tools with the text of the MIB.
struct Manager<'a> {
    snmpd: &'a Snmpd,
    mib_dirs: String,
}

impl<'a> Manager<'a> {
    fn new(dir: &Path, agent: &Agent, snmpd: &'a Snmpd) -> anyhow::Result<Self> {
        let text = agent.ask("mib", &[])?;
        let own = dir.join("mibs");
        fs::create_dir(&own)?;
        fs::write(own.join("VM-MIB.txt"), text.stdout)?;
        // What VM-MIB imports, for hosts that have no copies.
        let imports = root().join("agent/tests/mib_text/imports");
        Ok(Self { snmpd, mib_dirs: format!("-M{}:{}", own.display(), imports.display()) })
    }

    fn ask(&self, tool: &str, options: &[&str], name: &str) -> anyhow::Result<String> {
        let options = [&[self.mib_dirs.as_str(), "-mVM-MIB"], options].concat();
        Ok(self.snmpd.ask(tool, &options, &[name])?)
    }

    fn tables(&self) -> anyhow::Result<()> {
        for table in ["VM-MIB::vmTable", "VM-MIB::vmCpuTable"] {
            println!(
                "$ snmptable -v2c -c public -m VM-MIB -Ci -Cb -Cw 110 127.0.0.1:{} {table}",
                self.snmpd.port()
            );
            println!("{}", self.ask("snmptable", &["-Ci", "-Cb", "-Cw", "110"], table)?.trim());
        }
        Ok(())
    }

    /// vmCpuCoreTime in µs by its index.
    fn times(&self) -> anyhow::Result<Vec<(String, u64)>> {
        let lines = self.ask("snmpwalk", &["-OqUs"], CPU_TIME)?;
        lines
            .lines()
            .map(|line| {
                let (name, time) = line.split_once(' ').context("a line without a value")?;
                Ok((name.to_owned(), time.trim().parse().context("no number")?))
            })
            .collect()
    }
}

fn changes(before: &[(String, u64)], after: &[(String, u64)], elapsed: Duration) {
    for (name, time) in after {
        let Some((_, old)) = before.iter().find(|(known, _)| known == name) else { continue };
        let used = Duration::from_micros(time.saturating_sub(*old));
        let share = used.as_secs_f64() / elapsed.as_secs_f64() * 100.0;
        println!("{name:24} +{:>10} µs  {share:5.1} % of a CPU", used.as_micros());
    }
}

//! `cargo xtask demo`: the whole way, from two guests to a manager's tables, in half a minute.

mod guests;

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
use xtask::lab::{Agent, PATIENCE, Snmpd, TinyGuest, missing, wait_until};

use self::guests::Guests;
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
    /// Let QEMU run the guests without KVM, as on a machine that has none
    #[arg(long)]
    no_kvm: bool,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
    /// Everything is installed and built: what runs as root when the demo was not started by root
    #[arg(long, hide = true)]
    prepared: bool,
    /// The agent that was built for it
    #[arg(long, hide = true)]
    agent: Option<PathBuf>,
}

const CPU_TIME: &str = "vmCpuCoreTime";

/// Columns of requests and bytes, and the unit of each.
const DISK_COLUMNS: [(&str, &str); 4] = [
    ("vmStorageReadIOs", "reads"),
    ("vmStorageReadOctets", "bytes"),
    ("vmStorageWriteIOs", "writes"),
    ("vmStorageWriteOctets", "bytes"),
];

const ON_KVM: &str =
    "\"busy\" runs all the time, \"half\" half of it on one vCPU and halts on the other";

const WITHOUT_KVM: &str =
    "(without KVM: QEMU runs their firmware, and makes the requests on their disks)";

/// Between two rounds of requests that QEMU makes.
const PAUSE: Duration = Duration::from_millis(50);

/// Shows it. Everything that is started is ended, and everything that is written is removed, also on
/// Ctrl-C.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let has_kvm = !options.no_kvm && Path::new("/dev/kvm").exists();
    if !options.prepared {
        setup::run_for_demo(has_kvm, options.yes)?;
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
            if options.no_kvm {
                again.arg("--no-kvm");
            }
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
        "Starting two guests, each with a disk of 1 MiB that is read; that of \"busy\" is written, too",
    );
    println!("{}", if has_kvm { ON_KVM } else { WITHOUT_KVM });
    let mut guests = Guests::start(dir, has_kvm)?;
    say("Starting the agent");
    let mut agent = Agent::new(dir, &snmpd.agentx_address(), "[inventory]\nlibvirt = \"\"\n")?;
    agent.use_program(program);
    agent.start()?;
    let manager = Manager::new(dir, &agent, &snmpd)?;
    let vcpus = if has_kvm { 3 } else { 2 };
    let mut told = Ok(());
    wait_until(PATIENCE, "the guests' vCPUs and disks have counters", || {
        told = guests.request();
        let has = |column, rows| Some(manager.names(column).ok()?.len() >= rows);
        (told.is_err() || has(CPU_TIME, vcpus)? && has(DISK_COLUMNS[0].0, 2)?).then_some(())
    })?;
    told?;

    say("The tables, as a manager sees them");
    manager.tables()?;
    let before = manager.numbers()?;
    let start = Instant::now();
    say(&format!("The same after {seconds} s"));
    while start.elapsed() < Duration::from_secs(seconds) {
        if interrupted.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        guests.request()?;
        std::thread::sleep(PAUSE);
    }
    manager.tables()?;
    let after = manager.numbers()?;
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

    fn ask(&self, tool: &str, options: &[&str], names: &[&str]) -> anyhow::Result<String> {
        let options = [&[self.mib_dirs.as_str(), "-mVM-MIB"], options].concat();
        let names: Vec<String> = names.iter().map(|name| format!("VM-MIB::{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Ok(self.snmpd.ask(tool, &options, &names)?)
    }

    fn tables(&self) -> anyhow::Result<()> {
        for table in ["vmTable", "vmCpuTable", "vmStorageTable"] {
            println!(
                "$ snmptable -v2c -c public -m VM-MIB -Ci -Cb -Cw 110 127.0.0.1:{} VM-MIB::{table}",
                self.snmpd.port()
            );
            println!("{}", self.ask("snmptable", &["-Ci", "-Cb", "-Cw", "110"], &[table])?.trim());
        }
        Ok(())
    }

    /// Name and index of each value in a column.
    fn names(&self, column: &str) -> anyhow::Result<Vec<String>> {
        let lines = self.ask("snmpwalk", &["-OqUs"], &[column])?;
        Ok(lines.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    /// The columns that count. One request asks for all values, so that they are of one moment.
    fn numbers(&self) -> anyhow::Result<Vec<Number>> {
        let (mut names, mut units) = (Vec::new(), Vec::new());
        for (column, unit) in std::iter::once((CPU_TIME, "µs")).chain(DISK_COLUMNS) {
            names.extend(self.names(column)?);
            units.resize(names.len(), unit);
        }
        let wanted: Vec<&str> = names.iter().map(String::as_str).collect();
        let values = self.ask("snmpget", &["-OqvU"], &wanted)?;
        let values = values.lines().map(|value| value.trim().parse().context("no number"));
        let numbers = names.into_iter().zip(units).zip(values);
        numbers.map(|((name, unit), value)| Ok(Number { name, unit, value: value? })).collect()
    }
}

struct Number {
    /// Column and index.
    name: String,
    unit: &'static str,
    value: u64,
}

fn changes(before: &[Number], after: &[Number], elapsed: Duration) {
    for Number { name, unit, value } in after {
        let Some(old) = before.iter().find(|known| known.name == *name) else { continue };
        let grown = value.saturating_sub(old.value);
        print!("{name:28} +{grown:>10} {unit}");
        if *unit == "µs" {
            let share = Duration::from_micros(grown).as_secs_f64() / elapsed.as_secs_f64() * 100.0;
            print!("  {share:5.1} % of a CPU");
        }
        println!();
    }
}

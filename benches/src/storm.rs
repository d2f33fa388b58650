//! A storm: 300 VMs start at once, and then end. From the start of a VM's process to the notification that snmptrapd logs,
//! and from the end; and how long a GET takes meanwhile.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Barrier,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, anyhow};
use xtask::lab::{Agent, Client, Snmpd, Snmptrapd, TinyGuest, Way, missing};

use crate::measure::Samples;

const VMS: usize = 300;

/// Threads that start and end VMs.
const THREADS: usize = 4;

/// vmNumber.
const VM_NUMBER: [u32; 10] = [1, 3, 6, 1, 2, 1, 236, 1, 2, 0];

/// No notification comes after one for so long.
const SILENCE: Duration = Duration::from_secs(3);

/// Numbers of vmRunning and vmDeleted.
const RUNNING: u32 = 1;
const DELETED: u32 = 10;

/// A notification that was logged: when, its number, and the id in the name of its VM.
type Logged = (Instant, u32, u32);

/// What was measured of one build of the agent.
#[derive(Debug, Default)]
struct Measured {
    started: Samples,
    ended: Samples,
    get: Samples,
}

/// Measures storms, of this agent and of another build in turns, and prints.
pub(crate) fn run(rounds: u32, other: Option<&Path>) -> anyhow::Result<()> {
    for what in ["ebpf", "kvm", "snmpd", "snmptrapd"] {
        if let Some(reason) = missing(what) {
            println!("\nstorm: not measured: {reason}");
            return Ok(());
        }
    }
    TinyGuest::build()?;
    let builds = [None].into_iter().chain(other.map(|path| Some(path.to_owned())));
    let mut measured: Vec<(Option<PathBuf>, Measured)> =
        builds.map(|build| (build, Measured::default())).collect();
    for _ in 0..rounds.div_ceil(30) {
        for (build, measured) in &mut measured {
            storm(build.clone(), measured)?;
        }
    }
    println!("\n{VMS} VMs start at once, and end at once: {} storms", rounds.div_ceil(30));
    for (build, measured) in &measured {
        let name =
            build.as_ref().map_or_else(|| "this build".into(), |build| build.display().to_string());
        println!("{name}");
        for (what, samples) in [
            ("from the start of its process, snmptrapd has logged it", &measured.started),
            ("from the end of its process, snmptrapd has logged it", &measured.ended),
            ("a GET meanwhile", &measured.get),
        ] {
            println!(
                "  {what:<55} median {:>8.2} ms   p99 {:>8.2} ms   of {}",
                samples.median() / 1e6,
                samples.p99() / 1e6,
                samples.len()
            );
        }
    }
    Ok(())
}

fn storm(build: Option<PathBuf>, measured: &mut Measured) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let (snmptrapd, log) = Snmptrapd::start_piped(dir.path())?;
    let snmpd = Snmpd::start(dir.path(), &snmptrapd.sinks(&[Way::Trap]))?;
    let more = "[inventory]\nlibvirt = \"\"\n[notifications]\nper_vm = true\n";
    let mut agent = Agent::new(dir.path(), &snmpd.agentx_address(), more)?;
    if let Some(build) = build {
        agent.use_program(build);
    }
    agent.start()?;
    let client = Client::new(snmpd.port())?;
    let logged = logged(log);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let gets = scope.spawn(|| gets(client, &is_over));
        let storms = start_and_end(&logged, measured);
        is_over.store(true, Relaxed);
        let gets = gets.join().map_err(|_| anyhow!("the client has panicked"))?;
        for ns in gets? {
            measured.get.push(ns);
        }
        let dropped = dropped(&agent)?;
        anyhow::ensure!(dropped == 0, "The agent has dropped {dropped} notifications");
        storms
    })
}

/// Notifications that the agent has dropped.
fn dropped(agent: &Agent) -> anyhow::Result<u64> {
    let status: serde_json::Value =
        serde_json::from_slice(&agent.ask("status", &["--json"])?.stdout)?;
    status["notifications"]["dropped"].as_u64().context("the status has no such number")
}

fn start_and_end(logged: &Receiver<Logged>, measured: &mut Measured) -> anyhow::Result<()> {
    let (times, of_threads) = channel();
    let may_end = Barrier::new(THREADS + 1);
    // A guest ends with the thread that has started it.
    let guests = || {
        let started = (0..VMS / THREADS).map(|_| {
            let start = Instant::now();
            TinyGuest::start(&["--duty", "idle"]).inspect(|guest| {
                let _ = times.send((guest.pid(), start));
            })
        });
        let started = started.collect::<Result<Vec<_>, _>>();
        may_end.wait();
        for mut guest in started? {
            // Fails only if nothing waits for the time.
            let _ = times.send((guest.pid(), Instant::now()));
            guest.child.kill();
        }
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(guests)).collect();
        wait_for(logged, RUNNING, &of_threads, &mut measured.started);
        may_end.wait();
        wait_for(logged, DELETED, &of_threads, &mut measured.ended);
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread has panicked"))?)
    })
}

/// Waits for a notification of each VM. The kernel throws datagrams away that snmptrapd is too slow for: how many were
/// logged is printed.
fn wait_for(
    logged: &Receiver<Logged>,
    wanted: u32,
    times: &Receiver<(u32, Instant)>,
    samples: &mut Samples,
) {
    let mut seen = HashMap::new();
    let mut since = HashMap::new();
    while seen.len() < VMS
        && let Ok((at, number, pid)) = logged.recv_timeout(SILENCE)
    {
        if number == wanted {
            seen.insert(pid, at);
        }
    }
    // All have been sent, or are about to be.
    while since.len() < VMS
        && let Ok((pid, at)) = times.recv_timeout(SILENCE)
    {
        since.insert(pid, at);
    }
    for (pid, at) in seen {
        if let Some(since) = since.get(&pid) {
            samples.push(at.saturating_duration_since(*since).as_secs_f64() * 1e9);
        }
    }
}

/// How long each GET took, in ns, until it is over.
fn gets(mut client: Client, is_over: &AtomicBool) -> anyhow::Result<Vec<f64>> {
    let mut gets = Vec::new();
    while !is_over.load(Relaxed) {
        let answer = client.get(&[&VM_NUMBER])?;
        gets.push((answer.answered - answer.asked).as_secs_f64() * 1e9);
        thread::sleep(Duration::from_millis(1));
    }
    Ok(gets)
}

/// The notifications about single VMs that come out of a pipe.
fn logged(pipe: impl Read + Send + 'static) -> Receiver<Logged> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let now = Instant::now();
            let line = String::from_utf8_lossy(&line);
            if let Some((number, pid)) = notification(&line)
                && sender.send((now, number, pid)).is_err()
            {
                return;
            }
        }
    });
    receiver
}

/// `… = OID: .1.3.6.1.2.1.236.0.NUMBER … "tiny-guest-PID" …`
fn notification(line: &str) -> Option<(u32, u32)> {
    let digits = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let number = digits(line.split_once("= OID: .1.3.6.1.2.1.236.0.")?.1)?;
    Some((number, digits(line.split_once("\"tiny-guest-")?.1)?))
}

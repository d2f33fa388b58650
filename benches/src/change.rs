//! From an event of libvirt to a manager: the notification that snmptrapd logs, and the state that a GET finds. A
//! domain of a private libvirtd is paused and resumed; another client of libvirt tells when the event came.

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    path::Path,
    process::{ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use xtask::lab::{
    Agent, Child, Client, Libvirtd, PATIENCE, Snmpd, Snmptrapd, Way, missing, wait_until,
};

use crate::measure::Samples;

const UUID: &str = "0b0b0b0b-0000-4000-8000-000000000001";

/// vmOperState of the only VM, and its values.
const VM_OPER_STATE: [u32; 12] = [1, 3, 6, 1, 2, 1, 236, 1, 4, 1, 6, 1];
const RUNNING: u64 = 4;
const PAUSED: u64 = 8;

/// What issues its commands as fast as they are done, and what sees the events of libvirt.
struct Domain {
    commands: ChildStdin,
    _virsh: Child,
    events: Receiver<Instant>,
    _watch: Child,
    is_running: bool,
}

/// Measures ten changes a round, of this build of the agent or of another one, and prints.
pub(crate) fn run(rounds: u32, other: Option<&Path>) -> anyhow::Result<()> {
    for what in ["ebpf", "libvirt", "qemu", "snmpd", "snmptrapd"] {
        if let Some(reason) = missing(what) {
            println!("\nchange: not measured: {reason}");
            return Ok(());
        }
    }
    let dir = tempfile::tempdir()?;
    let libvirtd = Libvirtd::start(dir.path())?;
    let (snmptrapd, log) = Snmptrapd::start_piped(dir.path())?;
    let snmpd = Snmpd::start(dir.path(), &snmptrapd.sinks(&[Way::Trap]))?;
    let more = format!(
        "[inventory]\nlibvirt = \"{}\"\n[notifications]\nper_vm = true\n",
        libvirtd.uri_read_only()
    );
    let mut agent = Agent::new(dir.path(), &snmpd.agentx_address(), &more)?;
    if let Some(other) = other {
        agent.use_program(other.to_owned());
    }
    agent.start()?;
    let mut client = Client::new(snmpd.port())?;
    let traps = stamps(log, Snmptrapd::is_of_vm_mib);
    libvirtd.define(&format!(
        "<domain type='{}'><name>bench</name><uuid>{UUID}</uuid><memory unit='MiB'>32</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='pc'>hvm</type></os></domain>",
        if missing("kvm").is_none() { "kvm" } else { "qemu" }
    ))?;
    let mut domain = Domain::start(&libvirtd)?;
    wait_until(PATIENCE, "the domain is served", || {
        (client.number(&VM_OPER_STATE).ok()? == Some(RUNNING)).then_some(())
    })?;
    // Those of its start.
    while traps.recv_timeout(Duration::from_secs(1)).is_ok() {}

    let (mut notified, mut visible) = (Samples::default(), Samples::default());
    let mut new_state = 0_usize;
    for _ in 0..rounds.saturating_mul(10) {
        let event = domain.change()?;
        let trap = traps.recv_timeout(PATIENCE).context("a notification is missing")?;
        notified.push(between(event, trap));
        // A manager that answers a trap with a GET.
        let state = if domain.is_running { RUNNING } else { PAUSED };
        new_state += usize::from(client.get(&[&VM_OPER_STATE])?.values == [Some(state)]);
    }
    for _ in 0..rounds.saturating_mul(10) {
        let event = domain.change()?;
        let state = if domain.is_running { RUNNING } else { PAUSED };
        let limit = Instant::now() + PATIENCE;
        let seen = loop {
            let answer = client.get(&[&VM_OPER_STATE])?;
            if answer.values == [Some(state)] {
                break answer.answered;
            }
            anyhow::ensure!(answer.answered < limit, "the change is not seen");
        };
        visible.push(between(event, seen));
    }
    anyhow::ensure!(
        traps.iter().take(rounds as usize * 10).count() == rounds as usize * 10,
        "a notification is missing"
    );
    println!("\nfrom libvirt's event, {} changes each", notified.len());
    for (name, samples) in [("snmptrapd has logged it", &notified), ("a GET finds it", &visible)] {
        println!(
            "{name:<30} median {:>7.2} ms   p99 {:>7.2} ms",
            samples.median() / 1e6,
            samples.p99() / 1e6
        );
    }
    println!("a GET in answer to the trap finds the new state: {new_state} of {}", notified.len());
    for (what, figure, limit) in [("median", notified.median(), 1e7), ("p99", notified.p99(), 5e7)]
    {
        let verdict = if figure <= limit { "met" } else { "MISSED" };
        println!("target  notified, {what}: at most {} ms: {verdict}", limit / 1e6);
    }
    Ok(())
}

impl Domain {
    fn start(libvirtd: &Libvirtd) -> anyhow::Result<Self> {
        let uri = libvirtd.uri_read_write();
        let mut virsh = Command::new("virsh");
        virsh.args(["-q", "-c", &uri]).stdin(Stdio::piped()).stdout(Stdio::null());
        let mut virsh = Child::start(&mut virsh)?;
        let commands = virsh.process().stdin.take().context("virsh has no pipe")?;
        // A pipe would be written to in blocks.
        let mut watch = Command::new("stdbuf");
        watch.args(["-oL", "virsh", "-c", &uri, "event", "--loop", "--event", "lifecycle"]);
        let mut watch = Child::start(watch.stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let told = watch.process().stdout.take().context("virsh has no pipe")?;
        let events = stamps(told, |line| line.contains("event 'lifecycle'"));
        let mut domain = Self { commands, _virsh: virsh, events, _watch: watch, is_running: false };
        // Until the first event is seen, nobody may be looking yet.
        wait_until(PATIENCE, "libvirt's events are seen", || {
            domain.say(if domain.is_running { "destroy" } else { "start" }).ok()?;
            domain.is_running = !domain.is_running;
            domain.events.recv_timeout(Duration::from_secs(2)).ok()
        })?;
        if !domain.is_running {
            domain.say("start")?;
        }
        domain.is_running = true;
        // A start is told in more than one event.
        while domain.events.recv_timeout(Duration::from_secs(1)).is_ok() {}
        Ok(domain)
    }

    fn say(&mut self, command: &str) -> std::io::Result<()> {
        writeln!(self.commands, "{command} {UUID}")
    }

    /// Pauses or resumes it; when libvirt told so.
    fn change(&mut self) -> anyhow::Result<Instant> {
        self.say(if self.is_running { "suspend" } else { "resume" })?;
        self.is_running = !self.is_running;
        self.events.recv_timeout(PATIENCE).context("libvirt tells no event")
    }
}

/// When each line that is wanted came out of a pipe.
fn stamps(pipe: impl Read + Send + 'static, is_wanted: fn(&str) -> bool) -> Receiver<Instant> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let now = Instant::now();
            if is_wanted(&String::from_utf8_lossy(&line)) && sender.send(now).is_err() {
                return;
            }
        }
    });
    receiver
}

/// From one moment to another in ns; negative where the other came first.
fn between(from: Instant, to: Instant) -> f64 {
    match to.checked_duration_since(from) {
        Some(later) => later.as_secs_f64() * 1e9,
        None => -from.duration_since(to).as_secs_f64() * 1e9,
    }
}

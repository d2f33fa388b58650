//! Ordinary users, one who may use KVM and one who may not, do what could mislead or overload the agent, beside VMs of libvirt,
//! plain QEMU and another VMM that have disk I/O, and VMs that come and go. Nothing of these is wrong, or late.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod attacks;
mod comers;
mod traps;
mod victims;

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{Adversary, Client, HungFile, Libvirtd, PATIENCE, Snmptrapd, Way, wait_until};

use crate::lab::stage::{Stage, process_clock_ns};

use self::{attacks::Attacks, comers::Comers, traps::Traps, victims::Victims};

/// Limit for a value, a row or a notification to be late.
const LATE: Duration = Duration::from_millis(500);

/// Time without attacks, in which the agent's own need of CPU time is measured.
const CALM: Duration = Duration::from_secs(8);

/// Time with attacks.
const STORM: Duration = Duration::from_secs(35);

/// Most CPU time that the attacks may cost the agent, as a share of one CPU.
const MOST_CPU: f64 = 0.10;

/// The test ends when so much was wrong.
const MOST_WRONG: usize = 20;

/// Seed of what the users do.
const SEED: u64 = 236;

/// A part of the test: CPU time of the agent as a share of one CPU, and what was wrong.
struct Part {
    cpu: f64,
    /// The share of each of its threads, by their names.
    of_threads: BTreeMap<String, f64>,
    wrong: Vec<String>,
}

/// Checks the VMs for this time, while others come and go.
fn watch(stage: &mut Stage, victims: &mut Victims, traps: &Arc<Traps>, length: Duration) -> Part {
    let agent = stage.agent.child().unwrap().pid();
    let stop = Arc::new(AtomicBool::new(false));
    let comers = {
        let (stop, traps) = (Arc::clone(&stop), Arc::clone(traps));
        let client = Client::new(stage.snmpd.port()).unwrap();
        thread::spawn(move || Comers::new(client, traps).run(&stop))
    };
    let (start, used) = (Instant::now(), process_clock_ns(agent));
    let of_threads = thread_clocks_ns(agent);
    let mut wrong = Vec::new();
    while start.elapsed() < length && wrong.len() < MOST_WRONG {
        victims.check(stage, &mut wrong);
    }
    let share = |ns: u64| Duration::from_nanos(ns).as_secs_f64() / start.elapsed().as_secs_f64();
    let cpu = share(process_clock_ns(agent) - used);
    let of_threads = thread_clocks_ns(agent).into_iter().map(|(name, ns)| {
        let before = of_threads.get(&name).copied().unwrap_or(0);
        (name, share(ns.saturating_sub(before)))
    });
    let of_threads = of_threads.collect();
    stop.store(true, Relaxed);
    wrong.extend(comers.join().unwrap());
    Part { cpu, of_threads, wrong }
}

/// CPU time in ns of the threads that a process has now, by their names.
fn thread_clocks_ns(pid: u32) -> BTreeMap<String, u64> {
    let mut clocks = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        // A thread may end meanwhile.
        let read = |file| fs::read_to_string(task.path().join(file)).ok();
        let (Some(name), Some(times)) = (read("comm"), read("schedstat")) else { continue };
        let ns = times.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
        *clocks.entry(name.trim_end().to_owned()).or_default() += ns;
    }
    clocks
}

#[test]
fn users_without_rights_spoil_nothing_of_others() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu", "libvirt", "fuse", "root");
    let dir = tempfile::tempdir().unwrap();
    let libvirtd = Libvirtd::start(dir.path()).unwrap();
    let (snmptrapd, pipe) = Snmptrapd::start_piped(dir.path()).unwrap();
    let traps = Traps::follow(pipe);
    let config = "[notifications]\nper_vm = true\n";
    let uri = libvirtd.uri_read_only();
    let mut stage = Stage::made(&uri, &snmptrapd.sinks(&[Way::Trap]), config, |agent| {
        // A log of every event costs more than the work.
        agent.set("KVMETER_LOG", "info");
    });
    wait_until(PATIENCE, "libvirt is live", || {
        (stage.status()["sources"][1]["state"] == "live").then_some(())
    })
    .unwrap();
    let mut victims = Victims::start(dir.path(), &libvirtd, &stage);
    let known = traps.count();
    let calm = watch(&mut stage, &mut victims, &traps, CALM);
    assert!(calm.wrong.is_empty(), "without attacks: {:#?}\n{}", calm.wrong, stage.agent.log());

    let users = tempfile::tempdir().unwrap();
    let mount = tempfile::tempdir().unwrap();
    let hung = HungFile::mount(mount.path()).unwrap();
    let adversary = Adversary::new(users.path()).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let attackers = {
        let attacks = Attacks::new(adversary, hung.path(), victims.identities(), SEED);
        let stop = Arc::clone(&stop);
        thread::spawn(move || attacks.run(&stop))
    };
    let storm = watch(&mut stage, &mut victims, &traps, STORM);
    stop.store(true, Relaxed);
    let made = attackers.join().unwrap();
    drop(hung);
    let status = stage.status();
    println!(
        "{made:?}\nCPU of the agent: {:.3} before, {:.3} meanwhile {:.3?}\n{:#?}\n{}\n{}\n{} notifications",
        calm.cpu,
        storm.cpu,
        storm.of_threads,
        storm.wrong,
        status["sources"],
        status["notifications"],
        traps.count()
    );
    let mut wrong = storm.wrong;
    wrong.extend(
        traps
            .since(known)
            .filter(|trap| victims.has(trap.index))
            .map(|trap| format!("notification {} of a VM that has not changed", trap.line)),
    );
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", stage.agent.log());
    let more = storm.cpu - calm.cpu;
    assert!(more < MOST_CPU, "{more:.3} of a CPU\n{}", stage.agent.log());
}

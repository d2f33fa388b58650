//! An agent does not wake up while nothing changes in its VMs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    env,
    ffi::OsString,
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::lab::stage::{Stage, VM_CPU_CORE_TIME};
use xtask::lab::{Agent, PATIENCE, TinyGuest, wait_until};

/// Processes that start and end while the agent is idle.
const FORKS: u32 = 20_000;

/// Time without a wake-up after which the agent is idle. The last scan of a new VM is 2 s after its start.
const QUIET: Duration = Duration::from_secs(3);

/// Voluntary context switches of each of the agent's threads, by its id.
fn switches(agent: &Agent) -> HashMap<OsString, u64> {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.child().unwrap().pid())).unwrap();
    tasks
        .flatten()
        .filter_map(|task| {
            // The thread may have ended.
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt"))?;
            Some((task.file_name(), line.split_whitespace().last()?.parse().unwrap()))
        })
        .collect()
}

/// How often threads have woken up since then.
fn wake_ups_since(before: &HashMap<OsString, u64>, agent: &Agent) -> u64 {
    let now = switches(agent);
    now.iter().map(|(thread, count)| count - before.get(thread).unwrap_or(&0)).sum()
}

/// Length of the measurement; `KVMETER_IDLE_S` sets it in seconds.
fn idle() -> Duration {
    let seconds = env::var("KVMETER_IDLE_S").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(10))
}

/// Waits until the agent has finished what its VMs and its clients gave it to do.
fn wait_for_quiet(agent: &Agent) {
    let (mut since, mut before) = (Instant::now(), switches(agent));
    wait_until(PATIENCE, "the agent sleeps", || {
        if wake_ups_since(&before, agent) > 0 {
            (since, before) = (Instant::now(), switches(agent));
        }
        (since.elapsed() >= QUIET).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", agent.log()));
}

/// Fails if the agent woke up more often during `act` than the master's Pings make it: one a minute, with its response.
fn assert_sleeps(agent: &Agent, act: impl FnOnce()) {
    let (start, before) = (Instant::now(), switches(agent));
    act();
    let (elapsed, woken) = (start.elapsed(), wake_ups_since(&before, agent));
    println!("woken {woken} times in {elapsed:?}");
    assert!(woken <= 2 * (elapsed.as_secs() / 60 + 1), "{woken}, {elapsed:?}\n{}", agent.log());
}

#[test]
fn an_idle_agent_sleeps_while_other_processes_come_and_go() {
    require!("ebpf", "kvm", "snmpd");
    let mut stage = Stage::new();
    let _guest = TinyGuest::start(&["--vcpus", "2", "--duty", "idle"]).unwrap();
    // By SNMP: the thread that answers a status request ends 10 s later.
    stage.wait_for("its vCPUs are there", VM_CPU_CORE_TIME, &[1, 2], |time| time.is_some());
    wait_for_quiet(&stage.agent);
    assert_sleeps(&stage.agent, || thread::sleep(idle()));
    assert_sleeps(&stage.agent, || {
        // The shell forks and waits for each.
        let script = format!("i=0; while [ $i -lt {FORKS} ]; do (:); i=$((i+1)); done");
        assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    });
}

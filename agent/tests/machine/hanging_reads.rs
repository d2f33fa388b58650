//! Processes that cannot be read: each executes another program, and waits meanwhile for a file server that hangs.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use serde_json::Value;
use xtask::lab::{HungFile, PATIENCE, TinyGuest, wait_until};

use crate::lab::stage::{Stage, VM_CPU_CORE_TIME};

/// Limit for a VM's start to be served.
const SOON: Duration = Duration::from_millis(200);

/// Waits until the status shows reads of these processes that hang.
fn wait_for_hanging(stage: &Stage, expected: &[u32]) -> Vec<Value> {
    wait_until(PATIENCE, "the status shows which reads hang", || {
        let hanging = stage.status()["sources"][0]["hanging"].as_array().unwrap().clone();
        let pids: Vec<_> = hanging.iter().filter_map(|read| read["pid"].as_u64()).collect();
        expected.iter().map(|pid| u64::from(*pid)).eq(pids).then_some(hanging)
    })
    .unwrap_or_else(|error| {
        let status = stage.status()["sources"][0].to_string();
        panic!("{error}: {status}; the agent says:\n{}", stage.agent.log())
    })
}

#[test]
fn a_process_that_cannot_be_read_delays_no_other() {
    require!("ebpf", "kvm", "snmpd", "fuse");
    // They end after the server, for they wait for it.
    let mut stuck = Vec::new();
    let dir = tempfile::tempdir().unwrap();
    let server = HungFile::mount(dir.path()).unwrap();
    let file = server.path();
    let stick = || TinyGuest::start(&["--exec-over", file.to_str().unwrap()]).unwrap();
    // One before the agent starts, and one while it runs.
    stuck.push(stick());
    let mut stage = Stage::new();
    wait_for_hanging(&stage, &[stuck[0].pid()]);
    stuck.push(stick());
    let hanging = wait_for_hanging(&stage, &[stuck[0].pid(), stuck[1].pid()]);
    for read in hanging {
        assert!(read["function"].is_string(), "{read}");
    }
    assert_eq!(stage.status()["sources"][0]["state"], "live");

    for round in 0..3 {
        let start = Instant::now();
        let guest = TinyGuest::start(&["--duty", "half"]).unwrap();
        // The processes that cannot be read have no vCPUs.
        let index = wait_until(PATIENCE, "another VM", || {
            (1..=4).find(|index| stage.number(VM_CPU_CORE_TIME, &[*index, 1]).is_some())
        });
        let seen = start.elapsed();
        let index = index.unwrap_or_else(|error| panic!("{error}\n{}", stage.agent.log()));
        assert!(seen < SOON, "round {round}: seen after {seen:?}\n{}", stage.agent.log());
        drop(guest);
        stage.wait_for("it is gone", VM_CPU_CORE_TIME, &[index, 1], |time| time.is_none());
    }
    drop(server);
    wait_for_hanging(&stage, &[]);
}

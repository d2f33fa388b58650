//! Giving up privileges, seen from outside. A crate of its own with one test, which runs on the first thread of its process:
//! capabilities belong to a thread, and what is given up does not come back.

#[macro_use]
extern crate xtask_test;

use std::collections::BTreeMap;
use std::process::Command;

use caps::{CapSet, Capability};
use kvmeter::privileges::{drop_to, kept};

/// The fields of `/proc/PID/status` of a program that this process starts.
fn started() -> BTreeMap<String, String> {
    let output = Command::new("cat").arg("/proc/self/status").output();
    let output = output.unwrap_or_else(|e| panic!("cat: {e}"));
    fields(&String::from_utf8_lossy(&output.stdout))
}

fn fields(status: &str) -> BTreeMap<String, String> {
    let pairs = status.lines().filter_map(|line| line.split_once(":\t"));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn set(status: &BTreeMap<String, String>, key: &str) -> u64 {
    u64::from_str_radix(&status[key], 16).unwrap_or_else(|e| panic!("{key}: {e}"))
}

#[test]
fn what_is_given_up_is_gone_for_good() {
    let mask = kept().fold(0, |mask, capability| mask | capability.bitmask());
    let root = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)
        .unwrap_or_else(|e| panic!("{e}"));
    if !root {
        println!("without CAP_SETPCAP: the bounding set is not looked at");
    }

    let left = drop_to(&kept().collect::<Vec<_>>()).unwrap_or_else(|e| panic!("{e}"));
    assert!(left.iter().all(|capability| mask & capability.bitmask() != 0), "{left:?}");
    if root {
        assert_eq!(left.len(), 2, "root keeps all that it is to keep");
    }
    let own = std::fs::read_to_string("/proc/self/status").unwrap_or_else(|e| panic!("{e}"));
    let own = fields(&own);
    assert_eq!(own["NoNewPrivs"], "1");
    for (key, most) in [("CapEff", mask), ("CapPrm", mask), ("CapInh", 0), ("CapAmb", 0)] {
        assert_eq!(set(&own, key) & !most, 0, "{key}: {}", own[key]);
    }
    if root {
        assert_eq!(set(&own, "CapEff"), mask);
        assert_eq!(set(&own, "CapPrm"), mask);
        assert_eq!(set(&own, "CapBnd"), mask);
    }

    let child = started();
    assert_eq!(set(&child, "CapEff") & !mask, 0, "{}", child["CapEff"]);
    assert_eq!(set(&child, "CapPrm") & !mask, 0, "{}", child["CapPrm"]);
    assert_eq!(child["NoNewPrivs"], "1");

    let thread = std::thread::spawn(|| caps::read(None, CapSet::Effective));
    let thread = thread.join().unwrap_or_else(|_| panic!("the thread panicked"));
    assert_eq!(thread.unwrap_or_else(|e| panic!("{e}")), left);

    let again = caps::raise(None, CapSet::Effective, Capability::CAP_BPF);
    assert!(again.is_err(), "what is given up does not come back");

    let check = Command::new(env!("CARGO_BIN_EXE_kvmeter")).arg("check").output();
    let check = check.unwrap_or_else(|e| panic!("kvmeter check: {e}"));
    let lines = String::from_utf8_lossy(&check.stdout);
    assert_eq!(check.status.code(), Some(1));
    for (capability, verdict) in [
        ("CAP_BPF", "FAIL"),
        ("CAP_PERFMON", "FAIL"),
        ("CAP_SYS_PTRACE", if root { "ok" } else { "FAIL" }),
    ] {
        let line = lines.lines().find(|line| line.contains(&format!("  {capability}  ")));
        let line = line.unwrap_or_else(|| panic!("no line for {capability} in:\n{lines}"));
        assert!(line.starts_with(verdict), "{line}");
        assert_eq!(verdict == "FAIL", line.contains(". Fix: run as root"), "{line}");
    }
}

fn main() -> std::process::ExitCode {
    xtask::harness::run()
}

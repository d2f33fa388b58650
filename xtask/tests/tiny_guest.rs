//! The tiny guest does what its options and orders say, and never outlives whoever needs it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[macro_use]
extern crate xtask_test;

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::Signal;
use xtask::{
    lab::{Child, PATIENCE, TinyGuest, wait_until},
    require,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_tiny-guest");

/// What the scheduler says of a thread, in ns: how long it was on a CPU, and how long it waited for one.
#[derive(Clone, Copy, Debug)]
struct Schedstat {
    ran: u64,
    waited: u64,
}

impl Schedstat {
    fn read(pid: u32, tid: u32) -> Self {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/schedstat")).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        Self { ran: numbers.next().unwrap(), waited: numbers.next().unwrap() }
    }

    /// How long it wanted a CPU, with one or without.
    fn wanted(self) -> u64 {
        self.ran + self.waited
    }
}

fn comm(pid: u32, tid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/task/{tid}/comm")).ok()?;
    Some(name.trim_end().to_owned())
}

fn exists(pid: u32, tid: u32) -> bool {
    comm(pid, tid).is_some()
}

/// How many descriptors of vCPUs the process holds.
fn vcpu_descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("anon_inode:kvm-vcpu"))
        .count()
}

/// Runs it to its end, which comes with that of its input at the latest.
fn run(options: &[&str], input: &str) -> Output {
    let mut guest = Command::new(PROGRAM)
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused its options by now; then nobody reads.
    let _ = guest.stdin.take().unwrap().write_all(input.as_bytes());
    guest.wait_with_output().unwrap()
}

#[test]
fn vcpus_use_as_much_cpu_as_their_duty_says() {
    require!("kvm");
    let guest = TinyGuest::start(&["--vcpus", "4", "--duty", "busy,half,idle"]).unwrap();
    let all = || guest.tids().iter().map(|&tid| Schedstat::read(guest.pid(), tid));
    let (start, before) = (Instant::now(), all().collect::<Vec<_>>());
    wait_until(PATIENCE, "the busy vCPU has run", || {
        let wanted = Schedstat::read(guest.pid(), guest.tids()[0]).wanted();
        (wanted - before[0].wanted() > 1_000_000_000).then_some(())
    })
    .unwrap();
    let after = all().collect::<Vec<_>>();
    let passed = start.elapsed().as_nanos();
    let percent = |of: fn(Schedstat) -> u64| -> Vec<u128> {
        after
            .iter()
            .zip(&before)
            .map(|(&after, &before)| u128::from(of(after) - of(before)) * 100 / passed)
            .collect()
    };
    // A vCPU that waits for a CPU does not run, and what wakes up waits before it runs: on a machine with other
    // work, only waiting and running together have a lower bound, and only running has an upper one.
    let (ran, wanted) = (percent(|stat| stat.ran), percent(Schedstat::wanted));
    assert!(wanted[0] >= 90, "busy ran {ran:?}, wanted {wanted:?}");
    assert!(ran[1] <= 70 && wanted[1] >= 30, "half ran {ran:?}, wanted {wanted:?}");
    assert!(ran[2] <= 2, "idle ran {ran:?}, wanted {wanted:?}");
    assert!(ran[3] <= 2, "the last duty is for all that follow: {ran:?}");
    assert!(after[1].ran > before[1].ran, "half is not spent with waiting alone");
}

#[test]
fn threads_and_command_line_say_who_they_are() {
    require!("kvm");
    let guest = TinyGuest::start(&["--name", "web 1", "--vcpus", "2"]).unwrap();
    let names: Vec<_> = guest.tids().iter().map(|&tid| comm(guest.pid(), tid).unwrap()).collect();
    assert_eq!(names, ["vcpu0", "vcpu1"]);
    let line = fs::read(format!("/proc/{}/cmdline", guest.pid())).unwrap();
    assert!(line.windows(14).any(|part| part == b"--name\0web 1\0-"), "{line:?}");

    let guest = TinyGuest::start(&["--unnamed"]).unwrap();
    assert_eq!(comm(guest.pid(), guest.tids()[0]), comm(guest.pid(), guest.pid()));
}

#[test]
fn vcpus_are_plugged_and_unplugged() {
    require!("kvm");
    for duty in ["busy", "half", "idle"] {
        let mut guest = TinyGuest::start(&["--duty", duty]).unwrap();
        let (pid, first) = (guest.pid(), guest.tids()[0]);
        for round in 0..3 {
            guest.add_vcpu().unwrap();
            let [kept, added] = guest.tids()[..] else { panic!("{:?}", guest.tids()) };
            assert_eq!(kept, first, "{duty}, round {round}");
            assert_eq!(comm(pid, added).unwrap(), "vcpu1");
            assert_eq!(vcpu_descriptors(pid), 2, "KVM's own vCPU is used again");
            guest.remove_vcpu().unwrap();
            assert_eq!(guest.tids(), [first]);
            assert!(!exists(pid, added), "{duty}, round {round}: the thread is still there");
        }
        assert!(exists(pid, first));
    }
}

#[test]
fn short_lived_threads_come_and_go() {
    require!("kvm");
    let guest = TinyGuest::start(&["--churn", "500"]).unwrap();
    let mut seen = BTreeSet::new();
    wait_until(PATIENCE, "five threads have come and gone", || {
        let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid())).unwrap();
        let tids: BTreeSet<u32> =
            tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok()).collect();
        seen.extend(&tids);
        (seen.difference(&tids).count() >= 5).then_some(())
    })
    .unwrap();
    assert!(exists(guest.pid(), guest.tids()[0]), "the vCPU stays");
}

#[test]
fn requests_are_made_on_its_disks() {
    require!("kvm");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let (image, config) = (path("disk.img"), path("config.json"));
    let drive = format!(r#"{{"drive_id":"a","path_on_host":"{image}","is_read_only":false}}"#);
    fs::write(&config, format!(r#"{{"drives":[{drive}]}}"#)).unwrap();
    let options = ["--id", "web", "--config-file", &config, "--requests", "200"];
    let error = TinyGuest::start_as("firecracker", &options).unwrap_err();
    assert!(error.to_string().contains("did not say which threads it has"), "{error}");

    // Not a multiple of a request.
    fs::write(&image, vec![7; 70_000]).unwrap();
    let guest = TinyGuest::start_as("firecracker", &options).unwrap();
    let line = fs::read(format!("/proc/{}/cmdline", guest.pid())).unwrap();
    assert!(line.starts_with(b"firecracker\0--id\0web\0"), "{line:?}");
    let bytes = |kind: &str| -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/io", guest.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(kind)).unwrap();
        line.trim().parse().unwrap()
    };
    // More than once around the disk.
    wait_until(PATIENCE, "20 rounds are made", || {
        (bytes("rchar:") > 20 * 4096 && bytes("wchar:") > 20 * 16_384).then_some(())
    })
    .unwrap();
    assert_eq!(fs::metadata(&image).unwrap().len(), 70_000, "the disk keeps its size");
}

#[test]
fn a_stopped_guest_uses_no_cpu_and_goes_on() {
    require!("kvm");
    let guest = TinyGuest::start(&["--duty", "busy"]).unwrap();
    let ran = || Schedstat::read(guest.pid(), guest.tids()[0]).ran;
    guest.child.stop().unwrap();
    let stopped = ran();
    // Longer than the time slice of a thread that has not stopped after all.
    let start = Instant::now();
    wait_until(PATIENCE, "50 ms pass", || {
        assert_eq!(ran(), stopped);
        (start.elapsed() > Duration::from_millis(50)).then_some(())
    })
    .unwrap();
    guest.child.go_on().unwrap();
    wait_until(PATIENCE, "it runs again", || (ran() > stopped).then_some(())).unwrap();
}

#[test]
fn it_ends_with_its_input() {
    require!("kvm");
    let mut guest = TinyGuest::start(&["--vcpus", "2", "--duty", "busy,idle"]).unwrap();
    drop(guest.child.process().stdin.take());
    assert!(guest.child.wait(PATIENCE).unwrap().success());
}

#[test]
fn it_ends_by_sigterm() {
    require!("kvm");
    let mut guest = TinyGuest::start(&["--vcpus", "2", "--duty", "busy,idle"]).unwrap();
    guest.child.signal(Signal::TERM).unwrap();
    let status = guest.child.wait(PATIENCE).unwrap();
    assert_eq!(status.signal(), Some(Signal::TERM.as_raw()));
}

#[test]
fn it_ends_with_its_parent() {
    require!("kvm");
    // The input stays open, so that it is not this by which the guest ends.
    let mut command = Command::new("sh");
    command.args(["-c", "exec 3<&0; \"$0\" --duty busy <&3 & wait", PROGRAM]);
    let mut parent = Child::start(command.stdin(Stdio::piped()).stdout(Stdio::piped())).unwrap();
    let mut line = String::new();
    let output = parent.process().stdout.take().unwrap();
    BufReader::new(output).read_line(&mut line).unwrap();
    let pid: u32 = line.split(['=', ' ']).nth(2).unwrap().parse().unwrap();
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        (!stat.rsplit_once(") ")?.1.starts_with('Z')).then_some(())
    };
    assert!(runs().is_some(), "{line}");
    let _input = parent.process().stdin.take().unwrap();
    parent.kill();
    wait_until(PATIENCE, "the guest ends", || runs().is_none().then_some(())).unwrap();
}

#[test]
fn the_guest_ends_with_the_value() {
    require!("kvm");
    let guest = TinyGuest::start(&["--duty", "busy"]).unwrap();
    let pid = guest.pid();
    assert!(exists(pid, pid));
    drop(guest);
    assert!(!exists(pid, pid), "killed and reaped");
}

#[test]
fn wrong_options_and_orders_are_told() {
    for options in [["--duty", "often"], ["--vcpus", "0"], ["--memory", "0"]] {
        let output = run(&options, "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{options:?}: {said}");
        assert!(said.contains(options[0]) && said.contains(options[1]), "{said}");
    }
    require!("kvm");
    for (orders, complaint) in
        [("remove\nremove\n", "there is no vCPU left"), ("pause\n", "\"pause\" is neither")]
    {
        let output = run(&[], orders);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{orders:?}: {said}");
        assert!(said.contains(complaint), "{said}");
    }
}

#[test]
fn a_guest_that_does_not_start_is_an_error() {
    let error = TinyGuest::start(&["--duty", "often"]).unwrap_err();
    assert!(error.to_string().contains("did not say which threads it has"), "{error}");
}

fn main() -> std::process::ExitCode {
    xtask::harness::run()
}

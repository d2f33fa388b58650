//! The session with a real master: Debian's snmpd, private to this test, on a port of loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    process::Command,
    sync::{Arc, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use crate::objects::FixedObjects;
use kvmeter::{
    agentx::{Config, Phase, Statistics, TransportConfig, codec::ByteOrder, run},
    snmp::OwnedValue,
};

use tokio::sync::oneshot;
use xtask::lab::Snmpd;

const SUBTREE: &str = "1.3.6.1.2.1.236";

/// Runs one of net-snmp's tools with numeric names relative to the subtree. Returns its lines, or its error message.
fn snmp(tool: &str, port: u16, community: &str, arguments: &[&str]) -> Result<Vec<String>, String> {
    let absolute = |argument: &&str| match argument.strip_prefix('+') {
        Some(suffix) => format!("{SUBTREE}.{suffix}"),
        None => (*argument).to_owned(),
    };
    let output = Command::new(tool)
        .args(["-v2c", "-c", community, "-One", "-r0", "-t3", &format!("127.0.0.1:{port}")])
        .args(arguments.iter().map(absolute))
        .env("MIBS", "")
        .output()
        .unwrap();
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).trim().to_owned();
    if !output.status.success() {
        return Err(text(&output.stderr));
    }
    Ok(text(&output.stdout)
        .lines()
        .map(|line| line.trim().replace(&format!(".{SUBTREE}."), "+"))
        .collect())
}

/// Repeats a get until it is answered. Each attempt waits for snmpd, so this is not a busy loop.
fn wait_for(port: u16, name: &str, limit: Duration) -> Duration {
    let start = Instant::now();
    loop {
        match snmp("snmpget", port, "public", &[name]) {
            Ok(lines) if !lines[0].contains("No Such") => return start.elapsed(),
            answer => assert!(start.elapsed() < limit, "{name} after {limit:?}: {answer:?}"),
        }
    }
}

const STARTUP: Duration = Duration::from_secs(20);

const WALK: [&str; 13] = [
    "+1.1.0 = STRING: \"KVM\"",
    "+1.2.0 = Hex-STRING: 00 FF 80",
    "+1.3.0 = OID: .1.3.6.1.4.1.8072",
    "+1.4.0 = Timeticks: (4294967295) 497 days, 2:27:52.95",
    "+1.5.0 = INTEGER: -1",
    "+1.6.1.2.1 = STRING: \"vm1\"",
    "+1.6.1.2.2 = STRING: \"vm2\"",
    "+1.6.1.2.7 = STRING: \"vm7\"",
    "+1.6.1.2.4294967295 = STRING: \"vm4294967295\"",
    "+1.6.1.3.1 = Counter64: 18446744073709551614",
    "+1.6.1.3.2 = Counter64: 18446744073709551613",
    "+1.6.1.3.7 = Counter64: 18446744073709551608",
    "+1.6.1.3.4294967295 = Counter64: 18446744069414584320",
];

fn check_everything(port: u16) {
    let ask = |tool, arguments: &[&str]| snmp(tool, port, "public", arguments).unwrap();
    assert_eq!(ask("snmpbulkwalk", &[SUBTREE]), WALK);
    assert_eq!(ask("snmpwalk", &[SUBTREE]), WALK);
    for (line, next) in WALK.iter().zip(&WALK[1..]) {
        let (name, _) = line.split_once(' ').unwrap();
        assert_eq!(ask("snmpget", &[name]), [*line]);
        assert_eq!(ask("snmpgetnext", &[name]), [*next]);
    }
    assert_eq!(
        ask("snmpget", &["+1.5.1", "+1.1.0", "+9.0"]),
        [
            "+1.5.1 = No Such Instance currently exists at this OID",
            WALK[0],
            "+9.0 = No Such Object available on this agent at this OID",
        ]
    );
    let past = ask("snmpgetnext", &["+1.6.1.3.4294967295"]);
    assert!(!past[0].starts_with('+'), "the walk leaves the subtree: {past:?}");
    let refused = snmp("snmpset", port, "private", &["+1.5.0", "i", "5"]).unwrap_err();
    assert!(refused.contains("notWritable"), "{refused}");
    assert_eq!(ask("snmpget", &["+1.5.0"]), [WALK[4]], "a refused SET leaves the session alone");
}

/// A session on a thread of its own.
struct Served {
    statistics: Arc<Statistics>,
    shutdown: oneshot::Sender<()>,
    thread: thread::JoinHandle<()>,
}

impl Served {
    fn start(snmpd: &Snmpd, byte_order: ByteOrder, objects: FixedObjects) -> Self {
        let address = snmpd.agentx_address();
        let statistics = Arc::new(Statistics::default());
        let (shutdown, stop) = oneshot::channel::<()>();
        let of_thread = Arc::clone(&statistics);
        let thread = thread::spawn(move || {
            let session = Config { byte_order, ..Config::new(vec![SUBTREE.parse().unwrap()]) };
            let config = TransportConfig::new(address.parse().unwrap(), session);
            let stop = async { stop.await.unwrap() };
            let notices = tokio::sync::mpsc::channel(1).1;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let session = run(config, || objects.clone(), notices, &of_thread, stop);
            runtime.unwrap().block_on(session);
        });
        Self { statistics, shutdown, thread }
    }

    fn end(self) -> Arc<Statistics> {
        self.shutdown.send(()).unwrap();
        self.thread.join().unwrap();
        self.statistics
    }
}

fn check_session(byte_order: ByteOrder) {
    let directory = tempfile::tempdir().unwrap();
    let mut snmpd = Snmpd::start(directory.path(), "").unwrap();
    let port = snmpd.port();
    let served = Served::start(&snmpd, byte_order, FixedObjects::small());
    let statistics = Arc::clone(&served.statistics);

    let check_served = |session| {
        let found = wait_for(port, "+1.1.0", STARTUP);
        assert!(found <= Duration::from_secs(3), "the master was found after {found:?}");
        assert_eq!(statistics.phase(), Phase::Established);
        assert_eq!(statistics.sessions.load(Relaxed), session);
        check_everything(port);
    };
    check_served(1);
    // The second one begins where the first was killed: its socket is still there.
    snmpd.end();
    snmpd.begin().unwrap();
    check_served(2);
    served.end();
    let answer = snmp("snmpget", port, "public", &["+1.1.0"]).unwrap();
    assert!(answer[0].contains("No Such Object"), "the session was closed: {answer:?}");
    assert_eq!(statistics.parse_errors.load(Relaxed), 0);
}

#[test]
fn a_real_master_is_served_and_found_again_after_its_restart() {
    xtask::require!("snmpd");
    check_session(ByteOrder::Network);
    check_session(ByteOrder::Little);
}

/// snmpd drops a PDU of more than 65,536 octets without a word, asks again until it gives up, and closes the session.
#[test]
fn a_request_whose_answer_snmpd_would_drop_is_answered_at_once_and_the_session_stays() {
    xtask::require!("snmpd");
    let directory = tempfile::tempdir().unwrap();
    let snmpd = Snmpd::start(directory.path(), "").unwrap();
    let port = snmpd.port();
    let mut objects = FixedObjects::small();
    for row in 1..=128 {
        let name = format!("{SUBTREE}.1.7.1.1.{row}").parse().unwrap();
        objects.0.insert(name, OwnedValue::OctetString(vec![b'x'; 500]));
    }
    let served = Served::start(&snmpd, ByteOrder::Network, objects);
    wait_for(port, "+1.1.0", STARTUP);
    let names: Vec<String> = (1..=128).map(|row| format!("+1.7.1.1.{row}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // 540 octets of AgentX each.
    assert_eq!(snmp("snmpget", port, "public", &names[..121]).unwrap().len(), 121);
    let start = Instant::now();
    for tool in ["snmpget", "snmpgetnext"] {
        let refused = snmp(tool, port, "public", &names).unwrap_err();
        assert!(refused.contains("genError") || refused.contains("tooBig"), "{refused}");
    }
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let walk = snmp("snmpbulkwalk", port, "public", &["-Cr200", "+1.7"]).unwrap();
    assert_eq!(walk.len(), 128);
    let statistics = served.end();
    assert_eq!(statistics.connects.load(Relaxed), 1, "the session was never lost");
}

//! The status socket between two sides that trust each other little.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use kvmeter::status::client::{self, ClientError};
use kvmeter::status::model::{
    Agentx, Disk, DiskRequests, HangingRead, Hook, Latency, Nic, Notifications, Probe, ProbeMode,
    RecordTable, Refusal, Report, Requests, SessionState, SourceState, SpentShare, Vcpu, Vm,
};
use kvmeter::status::server::{Server, ServerError};
use kvmeter::status::socket_path;
use kvmeter::status::text::Summary;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::runtime::{Builder, Runtime};

fn report() -> Report {
    let vcpu = Vcpu {
        id: 0,
        tid: Some(4244),
        cpu_ns: Some(61_999_999_999),
        wait_ns: Some(1_000_000),
        switches: Some(12),
        preemptions: Some(3),
        live: true,
        why: None,
    };
    let silent = Vcpu {
        id: 1,
        tid: None,
        cpu_ns: None,
        wait_ns: None,
        switches: None,
        preemptions: None,
        live: false,
        why: Some("its thread is not known".into()),
    };
    Report {
        version: "0.1.0".into(),
        pid: 4242,
        uptime_ns: 90_061_000_000_000,
        agentx: Agentx {
            state: SessionState::Open,
            master: "unix:/var/agentx/master".into(),
            connects: 2,
            reconnects: 1,
            last_error: Some("the master closed the connection".into()),
            requests: Requests { get: 10, get_next: 20, get_bulk: 3, set: 0, other: 0 },
            errors: 1,
            parse_errors: 0,
            latency: Some(Latency { p50_us: 12, p99_us: 40, max_us: 310 }),
        },
        notifications: Notifications {
            changes: 5,
            sent: 3,
            dropped: 0,
            left_out: 7,
            unanswered: 1,
            refused: 0,
        },
        probe: Probe {
            uncounted_requests: 0,
            mode: ProbeMode::Ebpf,
            hooks: vec![
                Hook { name: "sched_switch".into(), method: None, live: true, why: None },
                Hook {
                    method: None,
                    name: "rw_verify_area".into(),
                    live: false,
                    why: Some("EPERM at load".into()),
                },
            ],
            adopted: true,
            pin_dir: "/sys/fs/bpf/kvmeter".into(),
            events_lost: 0,
            unrecorded_threads: 0,
            tables: vec![RecordTable {
                name: "VM records".into(),
                size: 4095,
                configured: Some(100),
                used: 1025,
                of_users: Some(1023),
                refused: vec![
                    Refusal {
                        user: None,
                        of: "root and libvirt".into(),
                        vms: 1,
                        why: "all are in use".into(),
                    },
                    Refusal {
                        user: Some(65_534),
                        of: "user 65534".into(),
                        vms: 3,
                        why: "a user's share\u{1b}".into(),
                    },
                ],
            }],
        },
        sources: vec![SourceState {
            name: "procfs".into(),
            uri: None,
            state: "live".into(),
            stale_since: None,
            vms: 2,
            rescans: 1,
            hanging: vec![HangingRead {
                pid: 77,
                program: "qemu\u{1b}[31m".into(),
                for_s: 12,
                function: Some("request_wait_answer".into()),
            }],
            spent: vec![SpentShare {
                user: Some(1000),
                of: "user 1000".into(),
                waiting: 3,
                deferred: 250,
            }],
            left_out: 9,
        }],
        blind_spots: vec![],
        vms: vec![
            Vm {
                index: 1,
                name: "web\u{1b}[31m".into(),
                uuid: Some("c0ffee00-0000-4000-8000-000000000001".into()),
                pid: Some(4243),
                state: "running".into(),
                cpu_ns: Some(62_000_000_000),
                why: None,
                vcpus: vec![vcpu, silent],
                disks: vec![Disk {
                    index: 1,
                    target: "vda".into(),
                    counted_by: Some("dio".into()),
                    why: None,
                    age_ms: None,
                    read: Some(DiskRequests {
                        requests: 1200,
                        octets: 4_915_200,
                        errors: Some(0),
                        latency_ns: 96_000_000,
                        p50_us: Some(71),
                        p99_us: Some(480),
                        p999_us: Some(1900),
                    }),
                    write: Some(DiskRequests {
                        requests: 7,
                        errors: Some(2),
                        ..DiskRequests::default()
                    }),
                }],
                nics: vec![Nic {
                    index: 1,
                    device: Some("tap0".into()),
                    if_index: Some(9),
                    parent_if_index: None,
                    why: Some("it is in no bridge".into()),
                }],
                gaps: vec![],
            },
            Vm {
                index: 12,
                name: "db".into(),
                uuid: None,
                pid: None,
                state: "shutdown".into(),
                cpu_ns: Some(0),
                why: None,
                vcpus: vec![],
                disks: vec![],
                nics: vec![],
                gaps: vec!["its configuration file vm.json was not read".into()],
            },
        ],
    }
}

fn big_report() -> Report {
    let mut big = report();
    let vm = big.vms[0].clone();
    big.vms = (1..=2000).map(|index| Vm { index, ..vm.clone() }).collect();
    big
}

/// Serves on a thread of its own until the runtime is dropped.
fn serve(runtime_dir: &Path, report: impl Fn() -> Report + Send + Sync + 'static) -> Runtime {
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.unwrap_or_else(|e| panic!("no runtime: {e}"));
    let server = Server::bind(runtime_dir).unwrap_or_else(|e| panic!("{e}"));
    runtime.spawn(server.serve(report));
    runtime
}

#[test]
fn what_the_agent_reports_arrives() {
    let dir = tempfile::tempdir().unwrap();
    let runtime_dir = dir.path().join("made/by/the/server");
    let _agent = serve(&runtime_dir, report);
    let (document, arrived) = client::fetch(&runtime_dir).unwrap();
    assert_eq!(arrived, report());
    let json: serde_json::Value = serde_json::from_str(&document).unwrap();
    assert_eq!(json["agentx"]["state"], "open");
    assert_eq!(json["probe"]["mode"], "ebpf");
    assert_eq!(json["vms"][0]["vcpus"][1]["cpu_ns"], serde_json::Value::Null);
}

#[test]
fn the_socket_is_for_owner_and_group() {
    let dir = tempfile::tempdir().unwrap();
    let _server = Server::bind(dir.path()).unwrap();
    let socket = fs::metadata(socket_path(dir.path())).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o7777, 0o660);
}

#[test]
fn the_socket_of_a_dead_agent_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    // What SIGKILL leaves behind: both files, no process.
    drop(UnixListener::bind(socket_path(dir.path())).unwrap());
    drop(UnixListener::bind(dir.path().join("status.sock.new")).unwrap());
    fs::write(dir.path().join("lock"), "999999999\n").unwrap();
    assert!(matches!(client::fetch(dir.path()), Err(ClientError::NotRunning { .. })));
    let _agent = serve(dir.path(), report);
    assert_eq!(client::fetch(dir.path()).unwrap().1, report());
}

#[test]
fn a_second_agent_is_refused_and_told_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::bind(dir.path()).unwrap();
    let refused = Server::bind(dir.path()).unwrap_err();
    assert!(matches!(&refused, ServerError::AlreadyRunning { .. }));
    let begin = format!("Another kvmeter runs with pid {} ", std::process::id());
    assert!(refused.to_string().starts_with(&begin), "{refused}");

    drop(first);
    assert!(!socket_path(dir.path()).exists());
    Server::bind(dir.path()).unwrap();
}

#[test]
fn clients_that_never_read_cannot_keep_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let _agent = serve(dir.path(), big_report);
    let socket = socket_path(dir.path());
    let hostile: Vec<UnixStream> = (0..4)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            // One octet proves that it has its turn; the rest fills the buffer.
            stream.read_exact(&mut [0]).unwrap();
            stream
        })
        .collect();
    let begin = Instant::now();
    let (_, arrived) = client::fetch(dir.path()).unwrap();
    assert_eq!(arrived.vms.len(), 2000);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());

    for mut stream in hostile {
        // Whoever reads before the end of the turn is no client that never reads.
        let end = Timespec { tv_sec: 10, tv_nsec: 0 };
        let mut events = [PollFd::new(&stream, PollFlags::RDHUP)];
        assert_eq!(poll(&mut events, Some(&end)).unwrap(), 1);
        let mut rest = Vec::new();
        // Its turn ended before all was written; what it had sent makes that a reset.
        assert!(stream.read_to_end(&mut rest).is_err());
        assert!(serde_json::from_slice::<serde_json::Value>(&rest).is_err());
    }
}

#[test]
fn a_client_that_leaves_at_once_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let _agent = serve(dir.path(), big_report);
    for _ in 0..10 {
        drop(UnixStream::connect(socket_path(dir.path())).unwrap());
    }
    assert_eq!(client::fetch(dir.path()).unwrap().1.vms.len(), 2000);
}

#[test]
fn without_an_agent_the_client_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = client::fetch(dir.path()).unwrap_err();
    assert!(matches!(&error, ClientError::NotRunning { .. }));
    assert!(error.to_string().contains("start it with `kvmeter run`"));
}

#[test]
fn an_answer_that_is_cut_off_is_no_report() {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(socket_path(dir.path())).unwrap();
    let half = serde_json::to_vec(&report()).unwrap();
    let agent = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&half[..half.len() / 2]).unwrap();
    });
    assert!(matches!(client::fetch(dir.path()), Err(ClientError::NoReport { .. })));
    agent.join().unwrap();
}

#[test]
fn people_see_short_lines_and_no_control_characters() {
    let expected = "\
kvmeter 0.1.0, pid 4242, up 1 d 01:01:01

AgentX  open with unix:/var/agentx/master
        2 connections, 1 of them after a loss; last error: the master closed the connection
        33 requests (10 get, 20 get-next, 3 get-bulk, 0 set, 0 other), 1 error, 0 unparsable; answered in 12 µs (p50), 40 µs (p99), 310 µs (max)
Notify  5 state changes; 3 notifications sent, 1 unanswered, 0 dropped, 0 PDUs refused by the master
Probe   eBPF, adopted, pinned under /sys/fs/bpf/kvmeter
        0 events lost, 0 threads without a record, 0 requests of disks not counted
Tables  1025 of 4095 VM records in use
        configured: 100 VM records; in effect when no VM runs at a start of the agent, after a reboot, or after `kvmeter detach`, \
             after which the disk counters of running VMs start from zero
        1 VM of root and libvirt lacks VM records: all are in use
        3 VMs of user 65534 lack VM records: a user's share\u{fffd}

HOOK            STATE  WHY
sched_switch    live
rw_verify_area  off    EPERM at load

SOURCE  STATE  STALE-SINCE  VMS  RESCANS
procfs  live             -    2        1
a read of process 77 (qemu\u{fffd}[31m) has hung for 12 s, in the kernel's request_wait_answer
scans of the processes of user 1000 cost too much: 250 of them came later, 3 processes wait now
left out of what VMs of users caused too much of: 7 state changes in notifications, 9 lines of the log

VMs     2: 1 running, 1 shutdown; 2 vCPUs; 1 disk: 1 by dio

VM  NAME      STATE      PID  VCPUS   CPU-S  UUID
 1  web\u{fffd}[31m  running   4243    1/2  62.000  c0ffee00-0000-4000-8000-000000000001
12  db        shutdown     -      0   0.000  -

VM  VCPU   TID   CPU-S  WAIT-S  SWITCHES  PREEMPTIONS
 1     0  4244  61.999   0.001        12            3
 1     1     -       -       -         -            -
VM 12: its configuration file vm.json was not read
vmNetworkParent is 0 for interface 1 of VM 1, tap0: it is in no bridge

VM  DISK  TARGET  COUNTED-BY  READS  P50-US  P99-US  P99.9-US  WRITES  P50-US  P99-US  P99.9-US
 1     1  vda     dio          1200      71     480      1900       7       -       -         -
vda of VM 1: 0 reads and 2 writes have failed
";
    assert_eq!(Summary(&report()).to_string(), expected);
}

#[test]
fn one_of_something_is_not_several() {
    let mut report = report();
    report.agentx.connects = 1;
    report.agentx.requests = Requests { get: 1, ..Requests::default() };
    report.notifications.changes = 1;
    report.notifications.sent = 1;
    report.notifications.left_out = 1;
    report.notifications.refused = 1;
    report.probe.events_lost = 1;
    report.probe.unrecorded_threads = 1;
    report.probe.uncounted_requests = 1;
    report.sources[0].spent[0].waiting = 1;
    report.sources[0].left_out = 1;
    report.vms.truncate(1);
    report.vms[0].vcpus.truncate(1);
    let text = Summary(&report).to_string();
    for line in [
        "        1 connection, 1 of them after a loss;",
        "        1 request (1 get, 0 get-next, 0 get-bulk, 0 set, 0 other), 1 error, 0 unparsable",
        "Notify  1 state change; 1 notification sent, 1 unanswered, 0 dropped, 1 PDU refused by the master",
        "        1 event lost, 1 thread without a record, 1 request of disks not counted",
        "came later, 1 process waits now",
        "too much of: 1 state change in notifications, 1 line of the log",
        "VMs     1: 1 running; 1 vCPU; 1 disk: 1 by dio",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn one_reason_of_several_hooks_is_told_once() {
    let mut report = report();
    let off = |name: &str, why: &str| Hook {
        name: name.into(),
        method: None,
        live: false,
        why: Some(why.into()),
    };
    report.probe.hooks = vec![
        off("sched_switch", "no BPF"),
        off("sched_wakeup", "no BPF"),
        off("sched_process_exit", "no BPF"),
        off("rw_verify_area", "EPERM at load"),
    ];
    let text = Summary(&report).to_string();
    let table = "\
HOOK                STATE  WHY
sched_switch        off    no BPF
sched_wakeup        off    as above
sched_process_exit  off    as above
rw_verify_area      off    EPERM at load
";
    assert!(text.contains(table), "{text}");
}

#[test]
fn thousands_of_vcpus_are_counted_and_not_listed() {
    let text = Summary(&big_report()).to_string();
    assert!(text.contains("\n4000 vCPUs; `kvmeter status --vm VM` lists those of one VM\n"));
    assert!(!text.contains("PREEMPTIONS"));
}

#[test]
fn one_vm_is_shown_by_its_name_uuid_or_index() {
    for name in ["db", "12"] {
        let mut report = report();
        assert!(report.retain_vm(name), "{name}");
        assert_eq!(report.vms.iter().map(|vm| vm.index).collect::<Vec<_>>(), [12]);
    }
    let mut of_uuid = report();
    assert!(of_uuid.retain_vm("C0FFEE00-0000-4000-8000-000000000001"));
    assert_eq!(of_uuid.vms[0].index, 1);
    assert!(!of_uuid.retain_vm("db"));
}

#[test]
fn a_large_host_has_a_line_for_each_reason_and_dates() {
    let mut report = report();
    report.sources[0].stale_since = Some(951_782_400);
    let disk = Disk {
        counted_by: None,
        why: Some("librbd".into()),
        read: None,
        write: None,
        ..report.vms[0].disks[0].clone()
    };
    report.vms[1].disks = vec![disk; 100];
    let text = Summary(&report).to_string();
    assert!(text.contains("2000-02-29T00:00:00Z"), "{text}");
    assert!(text.contains("\nvda of VM 12 and 99 others are not counted in the kernel: librbd\n"));
    assert!(text.contains("; 101 disks: 1 by dio, 100 by nothing\n"), "{text}");
    assert!(text.lines().count() < 40, "{text}");
}

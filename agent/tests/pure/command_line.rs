//! The commands as a shell sees them.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use kvmeter::status::Server;
use kvmeter::status::model::{
    Agentx, Notifications, Probe, ProbeMode, Report, Requests, SessionState,
};

fn kvmeter() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kvmeter"))
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

/// The line of `check` for one need.
fn line(output: &Output, need: &str) -> String {
    let stdout = text(&output.stdout);
    let found =
        stdout.lines().find(|line| line.get(6..).is_some_and(|rest| rest.starts_with(need)));
    found.unwrap_or_else(|| panic!("no line for {need} in:\n{stdout}")).to_owned()
}

/// A configuration in which everything that the agent would write is below `dir`.
fn config(dir: &Path, more: &str) -> String {
    let path = dir.join("kvmeter.toml");
    let dir = dir.display();
    let text = format!(
        "[agentx]\naddress = \"unix:{dir}/master\"\n[state]\ndir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n{more}"
    );
    fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path.display().to_string()
}

#[test]
fn a_kernel_without_btf_is_named_with_its_fix() {
    let dir = tempfile::tempdir().unwrap();
    let output = kvmeter()
        .args(["check", "--config", &config(dir.path(), "")])
        .env("KVMETER_BTF", "/nonexistent/vmlinux")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let btf = line(&output, "kernel BTF");
    assert!(btf.starts_with("FAIL  kernel BTF"), "{btf}");
    assert!(btf.contains("/nonexistent/vmlinux: No such file or directory"), "{btf}");
    assert!(
        btf.contains(". Fix: boot a kernel that is built with CONFIG_DEBUG_INFO_BTF=y"),
        "{btf}"
    );
    assert!(line(&output, "hooks").starts_with("warn"), "{}", text(&output.stdout));
}

#[test]
fn a_config_with_a_wrong_key_is_named_with_its_fix_and_the_rest_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "[inventory]\nlibvrt = \"\"\n");
    let output = kvmeter().args(["check", "--config", &path]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let first = line(&output, "config");
    assert!(
        first.contains(&format!(
            "{path}:7: inventory.libvrt: no such key; [inventory] has block_statistics_s, hv_object_id, libvirt, procfs. \
             Did you mean libvirt? Fix: correct line 7 of {path}"
        )),
        "{first}"
    );
    line(&output, "CAP_BPF");
    line(&output, "AgentX master");
}

#[test]
fn every_line_of_check_begins_with_its_verdict_and_failures_have_a_fix() {
    let dir = tempfile::tempdir().unwrap();
    let output = kvmeter().args(["check", "--config", &config(dir.path(), "")]).output().unwrap();
    let stdout = text(&output.stdout);
    for line in stdout.lines() {
        let ok = line.starts_with("ok    ");
        assert!(ok || line.starts_with("warn  ") || line.starts_with("FAIL  "), "{line}");
        assert_eq!(ok, !line.contains(" Fix: "), "{line}");
    }
    assert!(line(&output, "AgentX master").starts_with("FAIL"), "{stdout}");
    assert!(line(&output, "agent ").contains("none runs"), "{stdout}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn check_speaks_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let output = kvmeter().args(["check", "--json", "--config", &path]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["ready"], false);
    let checks = json["checks"].as_array().unwrap();
    assert_eq!(checks[0]["name"], "config");
    assert_eq!(checks[0]["verdict"], "ok");
    let master = checks.iter().find(|check| check["name"] == "AgentX master").unwrap();
    assert_eq!(master["verdict"], "fail");
    assert!(master["fix"].as_str().unwrap().contains("master agentx"));
}

#[test]
fn prepare_without_a_state_directory_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = kvmeter().args(["prepare", "--config", &config(dir.path(), "")]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    let state = dir.path().join("state");
    assert!(said.starts_with(&format!("kvmeter: There is no {} whose", state.display())), "{said}");
}

#[test]
fn status_without_an_agent_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let output = kvmeter().args(["status", "--config", &path]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let stderr = text(&output.stderr);
    assert!(stderr.starts_with("kvmeter: No kvmeter runs with the status socket "), "{stderr}");
    assert!(stderr.contains("start it with `kvmeter run`"), "{stderr}");
}

#[test]
fn status_with_a_file_that_is_missing_says_so() {
    let output = kvmeter().args(["status", "--config", "/nonexistent.toml"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "kvmeter: Cannot read the configuration file /nonexistent.toml: No such file or directory \
         (os error 2)\n"
    );
}

#[test]
fn status_shows_what_the_agent_reports() {
    let dir = tempfile::tempdir().unwrap();
    let path = config(dir.path(), "");
    let report = Report {
        version: "0.0.1".into(),
        pid: 77,
        uptime_ns: 1,
        agentx: Agentx {
            state: SessionState::Connecting,
            master: "unix:/m".into(),
            connects: 0,
            reconnects: 0,
            last_error: None,
            requests: Requests::default(),
            errors: 0,
            parse_errors: 0,
            latency: None,
        },
        notifications: Notifications {
            changes: 5,
            sent: 3,
            dropped: 0,
            left_out: 0,
            unanswered: 0,
            refused: 0,
        },
        probe: Probe {
            uncounted_requests: 0,
            mode: ProbeMode::Degraded,
            hooks: vec![],
            adopted: false,
            pin_dir: "/p".into(),
            events_lost: 0,
            unrecorded_threads: 0,
            tables: vec![],
        },
        sources: vec![],
        blind_spots: vec![],
        vms: vec![],
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let server = {
        let report = report.clone();
        Server::bind(&dir.path().join("run")).unwrap().serve(move || report.clone())
    };
    runtime.spawn(server);

    let people = kvmeter().args(["status", "--config", &path]).output().unwrap();
    assert_eq!(people.status.code(), Some(0), "{}", text(&people.stderr));
    assert!(text(&people.stdout).starts_with("kvmeter 0.0.1, pid 77, up 00:00:00\n"));
    let machine = kvmeter().args(["status", "--json", "--config", &path]).output().unwrap();
    assert_eq!(serde_json::from_slice::<Report>(&machine.stdout).unwrap(), report);
    let check = kvmeter().args(["check", "--config", &path]).output().unwrap();
    assert!(line(&check, "agent ").contains("runs with pid 77"));
}

#[test]
fn detach_where_nothing_is_pinned_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let pins = dir.path().join("pins");
    let path = config(dir.path(), &format!("[probe]\npin_dir = \"{}\"\n", pins.display()));
    let output = kvmeter().args(["detach", "--config", &path]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), format!("Nothing was pinned below {}\n", pins.display()));
}

#[test]
fn a_reader_that_has_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let dir = tempfile::tempdir().unwrap();
    let child = kvmeter()
        .args(["check", "--json", "--config", &config(dir.path(), "")])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

//! Runs a program with tests, and reads what its harness says: lines of JSON, between what tests that are not captured
//! print.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::Stdio,
    time::{Duration, Instant},
};

use serde_json::Value as Json;
use xtask::harness;

use crate::command::on_idle_cpus;

use super::{
    binaries::Binary,
    results::{Ended, Outcome},
    suite::Suite,
};

/// The tests of a program, or some of them.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) binary: Binary,
    pub(crate) harness: Harness,
    /// Whether the tests run on CPUs only that others leave idle.
    pub(crate) on_idle_cpus: bool,
    /// Where they run, if not in the machine's own system.
    pub(crate) suite: Option<Suite>,
}

/// What runs them.
#[derive(Debug)]
pub(crate) enum Harness {
    /// The compiler's own, many at the same time.
    Compiler,
    /// [`xtask::harness`], one after the other: those in this module, or all.
    Machine(Option<String>),
}

impl Job {
    pub(crate) const fn new(binary: Binary, harness: Harness) -> Self {
        Self { binary, harness, on_idle_cpus: false, suite: None }
    }

    /// Runs those whose names contain `filter`, if there is one.
    pub(crate) fn run(&self, filter: Option<&str>, required: &str) -> anyhow::Result<Vec<Ended>> {
        let mut command = self.binary.command();
        command.args(["--format", "json"]).args(filter);
        command.env("KVMETER_REQUIRE", required);
        // By it the lab would have cargo build the programs that it starts: they are built, with all packages.
        command.env_remove("CARGO");
        match &self.harness {
            Harness::Compiler => {
                // Its options for programs are not stable.
                command.args(["-Zunstable-options", "--report-time"]).env("RUSTC_BOOTSTRAP", "1");
            }
            Harness::Machine(Some(module)) => {
                command.env(harness::MODULES, module);
            }
            Harness::Machine(None) => {}
        }
        if let Some(suite) = &self.suite {
            command = suite.command(&command);
        }
        if self.on_idle_cpus {
            command = on_idle_cpus(&command);
        }
        command.stdin(Stdio::null());
        let (reader, writer) = std::io::pipe()?;
        let mut running = command.stdout(writer.try_clone()?).stderr(writer).spawn()?;
        drop(command);
        let mut events = Events { binary: &self.binary.name, ..Events::default() };
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            events.take(&line);
        }
        let status = running.wait()?;
        Ok(events.end(status.success(), &status.to_string()))
    }
}

/// What the harness has said so far.
#[derive(Debug, Default)]
struct Events<'a> {
    binary: &'a str,
    started: BTreeMap<String, Instant>,
    /// The reason for the test that is about to be told as ignored.
    reason: String,
    ended: Vec<Ended>,
    has_failed: bool,
}

impl Events<'_> {
    fn take(&mut self, line: &str) {
        if let Some(reason) = line.strip_prefix("ignored: ") {
            reason.clone_into(&mut self.reason);
            return;
        }
        // It begins behind what a test has printed without an end of the line.
        let event = line.find("{ \"type\":").map(|begin| line.split_at(begin));
        let event = event.and_then(|(printed, event)| {
            let event = serde_json::from_str::<Json>(event).ok()?;
            if !printed.is_empty() {
                println!("{}: {printed}", self.binary);
            }
            Some(event)
        });
        let Some(event) = event.filter(|event| event["type"].is_string()) else {
            println!("{}: {line}", self.binary);
            return;
        };
        if event["type"] != "test" {
            return;
        }
        let Some(test) = event["name"].as_str() else { return };
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let outcome = match event["event"].as_str() {
            Some("started") => {
                self.started.insert(test.to_owned(), Instant::now());
                return;
            }
            Some("ok") => Outcome::Passed,
            Some("ignored") => {
                let reason = std::mem::take(&mut self.reason);
                Outcome::Ignored(if reason.is_empty() { text("message") } else { reason })
            }
            Some("failed") => Outcome::Failed(text("stdout")),
            _ => return,
        };
        let since = self.started.remove(test).map(|start| start.elapsed());
        let told = event["exec_time"].as_f64().map(Duration::from_secs_f64);
        self.add(test, outcome, told.or(since).unwrap_or_default());
    }

    fn add(&mut self, test: &str, outcome: Outcome, took: Duration) {
        let name = format!("{}: {test}", self.binary);
        let word = match &outcome {
            Outcome::Passed => "ok".to_owned(),
            Outcome::Failed(_) => "FAILED".to_owned(),
            Outcome::Ignored(reason) => format!("ignored ({reason})"),
        };
        println!("{:7.1} s  {name} ... {word}", took.as_secs_f64());
        self.has_failed |= matches!(outcome, Outcome::Failed(_));
        self.ended.push(Ended { name, outcome, took });
    }

    /// A program that ends in another way than its harness is a test that fails.
    fn end(mut self, is_success: bool, status: &str) -> Vec<Ended> {
        if !is_success && !self.has_failed || !self.started.is_empty() {
            let running: Vec<String> = self.started.keys().cloned().collect();
            let said = format!("the program ended: {status}");
            self.add(&running.join(", "), Outcome::Failed(said), Duration::ZERO);
        }
        self.ended
    }
}

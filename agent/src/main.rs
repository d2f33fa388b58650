//! `kvmeter`: from the command line to the room that does it.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use kvmeter::check;
use kvmeter::cli::{Cli, Command, ConfigFile, Inspect};
use kvmeter::config::Config;
use kvmeter::probe::Probe;
use kvmeter::status::{client, text::Text};

fn main() -> ExitCode {
    match dispatch(Cli::parse().command) {
        Ok(code) => code,
        // Whoever reads has enough, as `head` has.
        Err(e) if broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("kvmeter: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(asked) => check(&asked),
        Command::Status(asked) => status(&asked),
        Command::Detach(file) => detach(&file),
    }
}

fn check(asked: &Inspect) -> anyhow::Result<ExitCode> {
    let config = Config::load(asked.file.config.as_deref());
    let preflight = check::preflight(config.as_ref().cloned());
    let mut out = io::stdout().lock();
    if asked.json {
        serde_json::to_writer_pretty(&mut out, &preflight).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{preflight}")?;
    }
    Ok(if preflight.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn status(asked: &Inspect) -> anyhow::Result<ExitCode> {
    let config = Config::load(asked.file.config.as_deref())?;
    let (document, report) = client::fetch(&config.state.runtime_dir)?;
    let mut out = io::stdout().lock();
    if asked.json {
        write!(out, "{document}")?;
    } else {
        write!(out, "{}", Text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn detach(file: &ConfigFile) -> anyhow::Result<ExitCode> {
    let pin_dir = Config::load(file.config.as_deref())?.probe.pin_dir;
    let told = if Probe::detach(&pin_dir)? {
        "Counting has ended, below"
    } else {
        "Nothing was pinned below"
    };
    writeln!(io::stdout(), "{told} {}", pin_dir.display())?;
    Ok(ExitCode::SUCCESS)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

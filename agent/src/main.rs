//! `kvmeter`: dispatches the commands of the command line.

use std::{
    env,
    io::{self, IsTerminal, Write},
};

use anyhow::bail;
use clap::Parser;
use kvmeter::{
    check::{self, Judged, Preflight},
    cli::{CheckOptions, Cli, Command, ConfigFile, MibText, StatusOptions},
    config::Config,
    exit::{Status, end_process},
    mib,
    probe::Probe,
    status::{client, text::Summary},
};
use tracing::{level_filters::LevelFilter, warn};

fn main() -> ! {
    let ended = match dispatch(Cli::parse().command) {
        Ok(ended) => ended,
        // The reader has closed the pipe, as head(1) does.
        Err(e) if broken_pipe(&e) => Status::Success,
        Err(e) => {
            eprintln!("kvmeter: {e:#}");
            Status::Failure
        }
    };
    end_process(ended)
}

fn dispatch(command: Command) -> anyhow::Result<Status> {
    match command {
        Command::Run(file) => run(&file),
        Command::Mib(text) => mib(text),
        Command::Check(options) => check(&options),
        Command::Status(options) => status(&options),
        Command::Prepare(file) => prepare(&file),
        Command::Detach(file) => detach(&file),
    }
}

fn run(file: &ConfigFile) -> anyhow::Result<Status> {
    let config = Config::load(file.config.as_deref())?;
    log();
    kvmeter::run::run(&config)?;
    Ok(Status::Success)
}

/// Sets up the log, on standard error. `KVMETER_LOG` is the lowest level (error, warn, info, debug).
fn log() {
    let text = env::var_os("KVMETER_LOG").filter(|text| !text.is_empty());
    let level = text.as_ref().and_then(|text| text.to_str()?.parse().ok());
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .init();
    if let (Some(text), None) = (text, level) {
        warn!("KVMETER_LOG={text:?} is no level: error, warn, info or debug; the level is info");
    }
}

fn mib(text: MibText) -> anyhow::Result<Status> {
    let text = if text.capabilities { mib::capabilities_text() } else { mib::text() };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(Status::Success)
}

fn check(options: &CheckOptions) -> anyhow::Result<Status> {
    let CheckOptions { inspect, as_service, inside } = options;
    let path = inspect.file.config.as_deref();
    let preflight = if let Some(unit) = as_service {
        // It returns only if this process cannot become the service.
        Preflight::of(vec![check::become_service(unit, path, inspect.json)])
    } else {
        let judged = match inside {
            Some(service) => Judged::Service(serde_json::from_str(service)?),
            None => Judged::Caller,
        };
        check::preflight(Config::load(path).as_ref().cloned(), &judged)
    };
    let mut out = io::stdout().lock();
    if inspect.json {
        serde_json::to_writer_pretty(&mut out, &preflight).map_err(io::Error::from)?;
        writeln!(out)?;
    } else {
        write!(out, "{preflight}")?;
    }
    Ok(if preflight.ready { Status::Success } else { Status::Failure })
}

fn status(options: &StatusOptions) -> anyhow::Result<Status> {
    let config = Config::load(options.inspect.file.config.as_deref())?;
    let (document, mut report) = client::fetch(&config.state.runtime_dir)?;
    let mut out = io::stdout().lock();
    if let Some(vm) = &options.vm
        && !report.retain_vm(vm)
    {
        bail!("No VM has the name, UUID or vmIndex {vm}");
    }
    if options.inspect.json && options.vm.is_some() {
        serde_json::to_writer_pretty(&mut out, &report).map_err(io::Error::from)?;
        writeln!(out)?;
    } else if options.inspect.json {
        write!(out, "{document}")?;
    } else {
        write!(out, "{}", Summary(&report))?;
    }
    Ok(Status::Success)
}

fn prepare(file: &ConfigFile) -> anyhow::Result<Status> {
    let config = Config::load(file.config.as_deref())?;
    let pin_dir = &config.probe.pin_dir;
    let user = Probe::prepare(pin_dir, &config.state.dir)?;
    writeln!(io::stdout(), "{} belongs to user {user}", pin_dir.display())?;
    Ok(Status::Success)
}

fn detach(file: &ConfigFile) -> anyhow::Result<Status> {
    let pin_dir = Config::load(file.config.as_deref())?.probe.pin_dir;
    let done = if Probe::detach(&pin_dir)? {
        "Counting has ended, below"
    } else {
        "Nothing was pinned below"
    };
    writeln!(io::stdout(), "{done} {}", pin_dir.display())?;
    Ok(Status::Success)
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

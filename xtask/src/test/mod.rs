//! `cargo xtask test`: everything that has to be green, and what of it can be done without root and in two minutes.

mod binaries;
mod checks;
mod lanes;
mod required;
mod results;
mod runner;

use std::thread;

use anyhow::{anyhow, bail};
use checks::Features;
use clap::Args;
use lanes::{Lane, Lanes};
use results::{Ended, Results};

use crate::{deny, setup};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only tests whose names contain this
    filter: Option<String>,
    /// What needs no root and nothing of the machine: format, lints, tidy, pure tests
    #[arg(long)]
    quick: bool,
    /// Leave out what is not a test: setup, format, lints, docs
    #[arg(long)]
    only_tests: bool,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut results = Results::default();
    if options.quick { quick(options, &mut results) } else { whole(options, &mut results) }?;
    if !results.conclude() {
        bail!("not green");
    }
    Ok(())
}

fn quick(options: &Options, results: &mut Results) -> anyhow::Result<()> {
    let features = Features::of_machine();
    if !options.only_tests {
        checks::of_text()?;
        checks::lints(features)?;
    }
    eprintln!("==> Building the pure tests");
    let arguments = [
        "--workspace",
        // Its programs have no `main` without the fuzzer.
        "--exclude",
        "kvmeter-fuzz",
        "--lib",
        "--bins",
        "--test",
        "pure",
    ];
    let lanes = Lanes::of(binaries::build(&features.of(&arguments))?)?;
    eprintln!("==> Pure tests");
    results.extend(lane(&lanes.pure, options.filter.as_deref(), "")?);
    Ok(())
}

fn whole(options: &Options, results: &mut Results) -> anyhow::Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    if is_root && !options.only_tests {
        setup::run_for_tests(options.yes)?;
    }
    let features = if is_root { Features::ALL } else { Features::of_machine() };
    if !options.only_tests {
        checks::of_text()?;
        deny::run()?;
        checks::lints(features)?;
    }
    eprintln!("==> Building the tests");
    let lanes = Lanes::of(binaries::build(&features.of(&["--workspace"]))?)?;
    let required = required::required();
    let run = |jobs: &Lane| lane(jobs, options.filter.as_deref(), &required);
    eprintln!("==> Pure tests");
    results.extend(run(&lanes.pure)?);
    eprintln!("==> Tests that measure time, or count everything on this machine");
    results.extend(run(&lanes.alone)?);
    eprintln!("==> Tests that mostly wait, and on idle CPUs what takes all that it gets");
    thread::scope(|scope| {
        let waiting: Vec<_> = lanes.waiting.iter().map(|jobs| scope.spawn(|| run(jobs))).collect();
        let idle = scope.spawn(|| {
            let ended = run(&lanes.idle)?;
            if !options.only_tests {
                checks::on_idle_cpus()?;
            }
            Ok(ended)
        });
        for lane in waiting.into_iter().chain([idle]) {
            results.extend(lane.join().map_err(|_| anyhow!("a lane of tests has panicked"))??);
        }
        Ok(())
    })
}

fn lane(jobs: &Lane, filter: Option<&str>, required: &str) -> anyhow::Result<Vec<Ended>> {
    let ended = jobs.iter().map(|job| job.run(filter, required)).collect::<Result<Vec<_>, _>>();
    Ok(ended?.into_iter().flatten().collect())
}

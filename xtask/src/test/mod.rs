//! `cargo xtask test`: everything that has to be green, and what of it can be done without root and in two minutes.

mod binaries;
mod checks;
mod lanes;
mod required;
mod results;
mod runner;
mod suite;

use std::thread;

use anyhow::{anyhow, bail};
use checks::Features;
use clap::Args;
use lanes::{Lane, Lanes};
use results::Results;
use suite::Suite;

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
    /// Only tests of the machine, with the programs of this release of Debian, such as trixie, which is downloaded
    #[arg(long, value_name = "SUITE", conflicts_with_all = ["quick", "yes"])]
    debian: Option<String>,
    /// Install what is missing without asking
    #[arg(long)]
    yes: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut results = Results::default();
    let checked = match &options.debian {
        Some(name) => in_suite(name, options, &mut results),
        None if options.quick => quick(options, &mut results),
        None => whole(options, &mut results),
    };
    if let Err(error) = &checked {
        // Before the last line, which counts the tests.
        eprintln!("{error:#}");
    }
    if !results.conclude() || checked.is_err() {
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
    lane(&lanes.pure, options.filter.as_deref(), "", results)?;
    if options.only_tests { Ok(()) } else { checks::on_idle_cpus(features) }
}

/// The tests of the machine in a release of Debian, one after the other.
fn in_suite(name: &str, options: &Options, results: &mut Results) -> anyhow::Result<()> {
    let suite = Suite::of(name)?;
    let features = Features::of_machine();
    let lanes = Lanes::of(binaries::build(&features.of(&["--workspace"]))?)?;
    let required = required::required();
    let mut jobs: Lane = lanes.alone;
    jobs.extend(lanes.one_at_a_time.into_iter().chain(lanes.waiting.into_iter().flatten()));
    jobs.iter_mut().for_each(|job| job.suite = Some(suite.clone()));
    lane(&jobs, options.filter.as_deref(), &required, results)
}

fn whole(options: &Options, results: &mut Results) -> anyhow::Result<()> {
    let is_set_up = rustix::process::geteuid().is_root() && !options.only_tests;
    if is_set_up {
        setup::run_for_tests(options.yes)?;
    }
    let features = if is_set_up { Features::ALL } else { Features::of_machine() };
    if !options.only_tests {
        checks::of_text()?;
        deny::run()?;
        checks::lints(features)?;
    }
    eprintln!("==> Building the tests");
    let lanes = Lanes::of(binaries::build(&features.of(&["--workspace"]))?)?;
    let required = required::required();
    let run = |jobs: &Lane, results: &mut Results| {
        lane(jobs, options.filter.as_deref(), &required, results)
    };
    eprintln!("==> Pure tests");
    run(&lanes.pure, results)?;
    eprintln!("==> Tests that measure time");
    run(&lanes.alone, results)?;
    eprintln!("==> Tests that do not, and on idle CPUs what takes all that it gets");
    let beside = thread::scope(|scope| {
        let start = |jobs, and_checks| {
            scope.spawn(move || {
                let mut results = Results::default();
                let ran = run(jobs, &mut results);
                let checked = if and_checks { checks::on_idle_cpus(features) } else { Ok(()) };
                (results, ran.and(checked))
            })
        };
        let idle = start(&lanes.idle, !options.only_tests);
        let mut ended = vec![start(&lanes.one_at_a_time, false).join()];
        let waiting: Vec<_> = lanes.waiting.iter().map(|jobs| start(jobs, false)).collect();
        ended.extend(waiting.into_iter().chain([idle]).map(thread::ScopedJoinHandle::join));
        ended
    });
    let mut all_ran = Ok(());
    for lane in beside {
        let (ended, ran) = lane.map_err(|_| anyhow!("a lane of tests has panicked"))?;
        results.extend(ended);
        all_ran = all_ran.and(ran);
    }
    all_ran
}

/// Runs jobs one after the other. What has ended is in the results, also after an error.
fn lane(
    jobs: &Lane,
    filter: Option<&str>,
    required: &str,
    results: &mut Results,
) -> anyhow::Result<()> {
    jobs.iter().try_for_each(|job| {
        results.add(job.run(filter, required)?);
        Ok(())
    })
}

//! The chores of kvmeter: `cargo xtask NAME`, one file each.

mod bench;
mod build;
mod command;
mod demo;
mod deny;
mod lints;
mod setup;
mod test;
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The chores of kvmeter
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Install what building and testing need: packages, the compiler's sources, bpf-linker, mounts, kernels, tools
    Setup(setup::Options),
    /// Build the agent in release mode, with its BPF programs
    Build,
    /// Show it: two tiny KVM guests, a private snmpd, the agent, and the tables as they move
    Demo(demo::Options),
    /// Run everything that has to be green: format, lints, docs, tests
    Test(test::Options),
    /// Check who imports whom, sizes of files, keys of the configuration, links between pages
    Tidy,
    /// Check the dependencies: licences, sources, duplicates, advisories, unused ones
    Deny,
    /// Measure: cost of a task switch, of a read, of a request
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let done = match Cli::parse().chore {
        Chore::Setup(options) => setup::run_all(&options),
        Chore::Build => build::run(),
        Chore::Demo(options) => demo::run(&options),
        Chore::Test(options) => test::run(&options),
        Chore::Tidy => tidy::run(),
        Chore::Deny => deny::run(),
        Chore::Bench(options) => bench::run(&options),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

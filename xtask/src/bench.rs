//! `cargo xtask bench`: the benchmarks of `benches/`, in release mode.

use clap::Args;

use crate::command::{cargo, run as run_command};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Which one, and its options; all of them without
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    names: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    run_command(
        cargo(["run", "--release", "-q", "-p", "kvmeter-benches", "--"]).args(&options.names),
    )
}

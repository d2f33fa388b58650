//! What kvmeter costs, measured: `cargo xtask bench [NAME]`. Each figure is the median of many rounds, and what is
//! compared is measured in turns in one run. The ledger beside this, README.md, keeps what was found.

mod empty;
mod read;
mod rounds;
mod switch;
mod threads;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What kvmeter costs
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    name: Option<Name>,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Name {
    /// The program at each task switch, over an empty program, beside runqlat and cpudist
    Switch,
    /// A counter, beside the kernel's own files and libvirt
    Read,
    /// A request, on 1,000 VMs with 16 vCPUs each
    View,
}

fn main() -> ExitCode {
    let all = [Name::Switch, Name::Read, Name::View];
    let wanted = Cli::parse().name;
    for name in all.iter().filter(|name| wanted.is_none_or(|wanted| wanted as u8 == **name as u8)) {
        let measured = match name {
            Name::Switch => switch::run(),
            Name::Read => read::run(),
            Name::View => view::run(),
        };
        if let Err(error) = measured {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

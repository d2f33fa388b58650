//! What kvmeter costs, measured: `cargo xtask bench [NAME]`. What counting costs the kernel, what a reading costs
//! the agent, what an answer costs the MIB. README.md says how each is measured and keeps the figures.

mod change;
mod disk;
mod machine;
mod measure;
mod publish;
mod read;
mod storm;
mod switch;
mod tracked;
mod view;

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

/// What kvmeter costs
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench")]
struct Cli {
    #[command(subcommand)]
    name: Option<Name>,
    /// Rounds to measure; the more, the steadier the medians
    #[arg(long, global = true, default_value_t = 100, value_parser = clap::value_parser!(u32).range(3..))]
    rounds: u32,
    /// Another build of the agent: `change` measures it instead, `storm` in turns with this one
    #[arg(long, global = true)]
    agent: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Subcommand)]
enum Name {
    /// The programs at each task switch and wake-up, over empty programs, beside runqlat and cpudist
    Switch,
    /// A counter, beside the kernel's own files and libvirt
    Read,
    /// An answer of the MIB, on 1,000 VMs with 16 vCPUs each
    View,
    /// One change of one VM, from the fact to the view, on hosts of 10 to 4,000 VMs; and a slow value
    Publish,
    /// The programs at the I/O of disks, and what fio and system calls on the host pay for them
    Disk,
    /// From an event of libvirt to the notification at a manager, and to what a GET finds
    Change,
    /// 300 VMs that start and end at once, to the notification at a manager; and GETs meanwhile
    Storm,
}

fn main() -> ExitCode {
    let Cli { name: wanted, rounds, agent } = Cli::parse();
    println!("{}", machine::description());
    for name in
        [Name::Switch, Name::Read, Name::View, Name::Publish, Name::Disk, Name::Change, Name::Storm]
    {
        if wanted.is_some_and(|wanted| wanted != name) {
            continue;
        }
        let measured = match name {
            Name::Switch => switch::run(rounds),
            Name::Read => read::run(rounds),
            Name::View => view::run(rounds),
            Name::Publish => {
                publish::run(rounds);
                Ok(())
            }
            Name::Disk => disk::run(rounds),
            Name::Change => change::run(rounds, agent.as_deref()),
            Name::Storm => storm::run(rounds, agent.as_deref()),
        };
        if let Err(error) = measured {
            eprintln!("{error:#}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

//! What the programs add to a context switch and to a wake-up: as the kernel times each run ([`in_program`]),
//! and as the switch as a whole takes longer ([`in_all`]).

mod in_all;
mod in_program;
mod load;
mod program;
mod tools;

pub(crate) use program::{Empty, RunTime};

use std::thread;

use crate::tracked::Tracked;
use load::{Pair, Turns};

/// A load and how many of its threads kvmeter counts, as vCPUs.
struct Scenario {
    name: &'static str,
    turns: Turns,
    tracked: usize,
}

const UNTRACKED: Scenario =
    Scenario { name: "neither thread tracked", turns: Turns::Pipe, tracked: 0 };
const HALF_TRACKED: Scenario =
    Scenario { name: "one thread tracked", turns: Turns::Pipe, tracked: 1 };
const TRACKED: Scenario = Scenario { name: "both threads tracked", turns: Turns::Pipe, tracked: 2 };
const RUNNABLE: Scenario =
    Scenario { name: "both tracked, none sleeps", turns: Turns::Yield, tracked: 2 };

impl Scenario {
    /// The load's threads, on the last CPU, which this process's main thread need not use.
    fn load(&self) -> anyhow::Result<Pair> {
        Pair::new(self.turns, thread::available_parallelism()?.get() - 1)
    }

    /// Begins to count those of `load` that are to be counted.
    fn track(&self, tracked: &Tracked, load: &Pair) -> anyhow::Result<()> {
        for thread in &load.threads[..self.tracked] {
            tracked.track_vcpu(thread)?;
        }
        Ok(())
    }
}

/// Measures and prints.
pub(crate) fn run(rounds: u32) -> anyhow::Result<()> {
    in_program::run(rounds)?;
    in_all::run(rounds)
}

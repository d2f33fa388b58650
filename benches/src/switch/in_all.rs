//! Time of a switch as a whole, with its wake-up, while the kernel does not time the programs: what is left of
//! the programs' own time when the CPU overlaps it with the rest, and what the tracepoints themselves add.

use std::{
    thread,
    time::{Duration, Instant},
};

use super::{Scenario, TRACKED, UNTRACKED, load::Pair, program::Empty};
use crate::{measure::Samples, tracked::Tracked};

/// As in [`super::in_program`]; longer, since a switch varies more than a program.
const WARM_UP: Duration = Duration::from_millis(5);
const ROUND: Duration = Duration::from_millis(50);

/// How many rounds of the benchmark one round here stands for: each attaches and detaches the programs.
const ROUNDS_EACH: u32 = 2;

const NAMES: [&str; 4] = [
    "nothing of ours attached",
    "empty programs at sched_switch and sched_wakeup",
    "kvmeter, neither thread tracked",
    "kvmeter, both threads tracked",
];

/// Measures and prints.
pub(super) fn run(rounds: u32) -> anyhow::Result<()> {
    let rounds = rounds.div_ceil(ROUNDS_EACH);
    let load = UNTRACKED.load()?;
    let mut samples = NAMES.map(|_| Samples::default());
    let mut over_nothing = NAMES.map(|_| Samples::default());
    let mut over_empty = NAMES.map(|_| Samples::default());
    for _ in 0..rounds {
        let round = [
            ns_per_switch(&load)?,
            {
                let _empty = [Empty::attach("sched_switch")?, Empty::attach("sched_wakeup")?];
                ns_per_switch(&load)?
            },
            counted(&load, &UNTRACKED)?,
            counted(&load, &TRACKED)?,
        ];
        for (number, ns) in round.into_iter().enumerate() {
            samples[number].push(ns);
            over_nothing[number].push(ns - round[0]);
            over_empty[number].push(ns - round[1]);
        }
    }
    println!(
        "\n{:<48} {:>22} {:>23} {:>24}",
        "a switch in all: ns, median (quartiles)", "", "over nothing", "over empty programs"
    );
    for (number, name) in NAMES.iter().enumerate() {
        let [all, over_nothing, over_empty] =
            [&samples, &over_nothing, &over_empty].map(|figures| figures[number].to_string());
        println!("{name:<48} {all:>22} {over_nothing:>23} {over_empty:>24}");
    }
    println!("Rounds: {rounds}, disturbed ones included.");
    Ok(())
}

fn counted(load: &Pair, scenario: &Scenario) -> anyhow::Result<f64> {
    let tracked = Tracked::start()?;
    scenario.track(&tracked, load)?;
    ns_per_switch(load)
}

fn ns_per_switch(load: &Pair) -> anyhow::Result<f64> {
    load.switch_during(|| {
        thread::sleep(WARM_UP);
        let (start, before) = (Instant::now(), load.switches_in()?);
        thread::sleep(ROUND);
        let (elapsed, after) = (start.elapsed(), load.switches_in()?);
        Ok(elapsed.as_secs_f64() * 1e9 / (after - before) as f64)
    })
}

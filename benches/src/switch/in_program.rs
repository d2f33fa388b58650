//! Time within the programs.
//!
//! The kernel times each run of a program while its BPF statistics are on. It reads a clock before and after,
//! which takes longer than a short program, so an empty program at the same tracepoint sees the same
//! events, and its time is subtracted, round by round.

use std::{collections::BTreeMap, thread, time::Duration};

use anyhow::Context as _;
use aya::sys::{Stats, enable_stats};

use super::{
    HALF_TRACKED, RUNNABLE, Scenario, TRACKED, UNTRACKED,
    load::{Pair, Turns},
    program::{Empty, RunTime, others},
    tools::Tool,
};
use crate::{
    measure::{Samples, judge},
    tracked::Tracked,
};

/// Time from the start of a load to the first look at the statistics, and from there to the second.
const WARM_UP: Duration = Duration::from_millis(3);
const ROUND: Duration = Duration::from_millis(20);

/// A round says nothing of the load when more than this share of the switches are those of others.
const FOREIGN_SHARE: f64 = 0.05;

const SWITCH: &str = "sched_switch";
const WAKEUP: &str = "sched_wakeup";
const HOOKS: [&str; 2] = [SWITCH, WAKEUP];

const EMPTY: &str = "empty program";
const KVMETER: &str = "kvmeter";
const TOOLS: [&str; 2] = ["runqlat", "cpudist"];

const SCENARIOS: [Scenario; 4] = [UNTRACKED, HALF_TRACKED, TRACKED, RUNNABLE];

/// At most so many ns over an empty program, by number of the scenario.
const TARGETS: [(usize, f64); 3] = [(0, 25.0), (1, 60.0), (2, 60.0)];

/// A program that is looked at.
struct Program {
    owner: &'static str,
    hook: &'static str,
    id: u32,
}

/// Samples by hook, number of the scenario, and owner of the program.
type Results = BTreeMap<(&'static str, usize, &'static str), Samples>;

/// Measures and prints.
pub(super) fn run(rounds: u32) -> anyhow::Result<()> {
    // They are on as long as this descriptor is open, and the kernel closes it whatever happens here.
    let _statistics =
        enable_stats(Stats::RunTime).context("BPF statistics need Linux 5.8 and root")?;
    let empty = [Empty::attach(SWITCH)?, Empty::attach(WAKEUP)?];
    let tracked = Tracked::start()?;
    let mut programs = Vec::new();
    for (hook, empty) in HOOKS.into_iter().zip(&empty) {
        programs.push(Program { owner: EMPTY, hook, id: empty.id });
        programs.push(Program { owner: KVMETER, hook, id: tracked.program(hook)? });
    }
    let mut loads = Vec::new();
    for scenario in &SCENARIOS {
        let load = scenario.load()?;
        scenario.track(&tracked, &load)?;
        loads.push(load);
    }
    let known: Vec<u32> = programs.iter().map(|program| program.id).collect();
    let foreign = others(SWITCH, &known)?;
    if foreign > 0 {
        println!("(programs of others at {SWITCH}, which disturb this: {foreign})");
    }
    let alone = measure(rounds, &loads, &programs)?;

    let mut tools = Vec::new();
    for name in TOOLS {
        match Tool::start(name) {
            Ok(tool) => tools.push(tool),
            Err(error) => println!("({name} of libbpf-tools is left out: {error:#})"),
        }
    }
    for tool in &tools {
        let found = HOOKS.into_iter().filter_map(|hook| Some((hook, tool.program(hook)?)));
        programs.extend(found.map(|(hook, id)| Program { owner: tool.name, hook, id }));
    }
    let beside =
        if tools.is_empty() { Results::new() } else { measure(rounds, &loads, &programs)? };
    print(rounds, &alone, &beside);
    Ok(())
}

/// Runs each load once a round.
fn measure(rounds: u32, loads: &[Pair], programs: &[Program]) -> anyhow::Result<Results> {
    let mut results = Results::new();
    for _ in 0..rounds {
        for (number, load) in loads.iter().enumerate() {
            let (before, after, own) = load.switch_during(|| {
                thread::sleep(WARM_UP);
                let (own, before) = (load.switches_in()?, look(programs)?);
                thread::sleep(ROUND);
                let after = look(programs)?;
                Ok((before, after, load.switches_in()? - own))
            })?;
            record(&mut results, number, programs, &before, &after, own);
        }
    }
    Ok(results)
}

fn look(programs: &[Program]) -> anyhow::Result<Vec<RunTime>> {
    programs.iter().map(|program| RunTime::of(program.id)).collect()
}

/// Books one round, unless it was disturbed; `own` is how often the load's threads got the CPU in it.
fn record(
    results: &mut Results,
    scenario: usize,
    programs: &[Program],
    before: &[RunTime],
    after: &[RunTime],
    own: u64,
) {
    for hook in HOOKS {
        // Threads that never sleep are not woken: what is seen then is others.
        if hook == WAKEUP && matches!(SCENARIOS[scenario].turns, Turns::Yield) {
            continue;
        }
        let runs = || programs.iter().zip(before.iter().zip(after)).filter(|(p, _)| p.hook == hook);
        let Some((_, (floor_before, floor_after))) = runs().find(|(p, _)| p.owner == EMPTY) else {
            continue;
        };
        let all = floor_after.runs - floor_before.runs;
        if all == 0 || all as f64 * (1.0 - FOREIGN_SHARE) > own as f64 {
            continue;
        }
        let floor = floor_after.ns_per_run_since(*floor_before);
        for (program, (before, after)) in runs() {
            let ns = after.ns_per_run_since(*before);
            let over = if program.owner == EMPTY { ns } else { ns - floor };
            results.entry((hook, scenario, program.owner)).or_default().push(over);
        }
    }
}

fn print(rounds: u32, alone: &Results, beside: &Results) {
    for hook in HOOKS {
        println!(
            "\n{:<42} {:>26} {:>26}",
            format!("{hook}: ns a run, median (quartiles)"),
            "kvmeter alone",
            "all in the same run"
        );
        for (number, scenario) in SCENARIOS.iter().enumerate() {
            for owner in [KVMETER].into_iter().chain(TOOLS).chain([EMPTY]) {
                let key = (hook, number, owner);
                let figures = [alone, beside].map(|results| results.get(&key));
                if let [None, None] = figures {
                    continue;
                }
                let [alone, beside] =
                    figures.map(|s| s.map_or_else(|| "-".into(), Samples::to_string));
                println!("{:<26} {owner:<15} {alone:>26} {beside:>26}", scenario.name);
            }
        }
    }
    println!(
        "\nAll are over the empty program, whose own time is that of the measuring. Rounds: {rounds}; of \
         those without\nmuch switching by others: {} and {}.",
        used(alone),
        used(beside)
    );
    for (which, results) in [("alone", alone), ("in the same run as the others", beside)] {
        for (number, limit) in TARGETS {
            if let Some(samples) = results.get(&(SWITCH, number, KVMETER)) {
                judge(&format!("{SWITCH}, {}, {which}", SCENARIOS[number].name), samples, limit);
            }
        }
    }
}

/// The smallest number of rounds that a figure rests on.
fn used(results: &Results) -> usize {
    results.values().map(Samples::len).min().unwrap_or(0)
}

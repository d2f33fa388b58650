//! Figures out of many rounds.

use std::{hint::black_box, time::Instant};

/// Rounds of each measurement.
const ROUNDS: usize = 51;

/// What the rounds gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) low: f64,
    pub(crate) median: f64,
    pub(crate) high: f64,
}

impl Spread {
    /// The median, with the quartiles around it.
    pub(crate) fn of(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let at = |share: usize| figures.get(figures.len() * share / 4).copied().unwrap_or(f64::NAN);
        Self { low: at(1), median: at(2), high: at(3) }
    }
}

/// A figure with what it is to reach, if anything.
pub(crate) fn print(what: &str, ns: Spread, target: Option<f64>) {
    let verdict = match target {
        Some(target) if ns.median <= target => format!("  target {target} ns: met"),
        Some(target) => format!("  target {target} ns: MISSED"),
        None => String::new(),
    };
    println!("{what:52} {:9.1} ns  ({:.1} to {:.1}){verdict}", ns.median, ns.low, ns.high);
}

/// Times all of these in turns: nanoseconds for each call.
pub(crate) fn time<const N: usize>(
    mut calls: [(usize, &mut dyn FnMut() -> u64); N],
) -> [Spread; N] {
    let mut figures = [const { Vec::new() }; N];
    for _ in 0..ROUNDS {
        for (figures, (count, call)) in figures.iter_mut().zip(&mut calls) {
            let start = Instant::now();
            for _ in 0..*count {
                black_box(call());
            }
            let count = u32::try_from(*count).unwrap_or(u32::MAX);
            figures.push(start.elapsed().as_secs_f64() * 1e9 / f64::from(count));
        }
    }
    figures.map(Spread::of)
}

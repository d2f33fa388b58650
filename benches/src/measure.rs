//! Samples, and what is said about them.

use std::{
    fmt,
    hint::black_box,
    time::{Duration, Instant},
};

/// How long one sample of a [`Subject`] takes: long beside the clock, short beside the time between two
/// disturbances.
const SAMPLE: Duration = Duration::from_micros(300);

/// One figure a round, in ns.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) fn push(&mut self, sample: f64) {
        self.0.push(sample);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The quartiles, the median in the middle.
    pub(crate) fn quartiles(&self) -> [f64; 3] {
        [0.25, 0.5, 0.75].map(|share| self.quantile(share))
    }

    /// The sample that 99 of 100 do not exceed.
    pub(crate) fn p99(&self) -> f64 {
        self.quantile(0.99)
    }

    /// The sample below which `share` of all lie; NaN without samples.
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of the length is below it"
        )]
        let at = (share * last as f64).round() as usize;
        sorted.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// Median and quartiles.
impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.pad("-");
        }
        let figure = |ns: f64| match ns {
            _ if ns >= 1e7 => format!("{:.0} ms", ns / 1e6),
            _ if ns >= 1e4 => format!("{:.1} us", ns / 1e3),
            _ if ns >= 1e3 => format!("{ns:.0}"),
            _ => format!("{ns:.1}"),
        };
        let [low, median, high] = self.quartiles().map(figure);
        f.pad(&format!("{median} ({low} to {high})"))
    }
}

/// Says whether `samples` keep within `limit` ns. A miss is a finding, not a failure.
pub(crate) fn judge(what: &str, samples: &Samples, limit: f64) {
    let median = samples.median();
    let verdict = if median <= limit { "met" } else { "MISSED" };
    println!("target  {what}: {median:.1} ns, at most {limit} ns: {verdict}");
}

/// Something that is done over and over.
pub(crate) struct Subject<'a> {
    pub(crate) name: String,
    pub(crate) samples: Samples,
    run: Box<dyn FnMut(u32) + 'a>,
    per_sample: u32,
    parts: u32,
}

impl<'a> Subject<'a> {
    pub(crate) fn new<R>(name: impl Into<String>, mut act: impl FnMut() -> R + 'a) -> Self {
        let run = move |times| {
            for _ in 0..times {
                black_box(act());
            }
        };
        let name = name.into();
        Self { name, samples: Samples::default(), run: Box::new(run), per_sample: 1, parts: 1 }
    }

    /// Shows the time of one of the `parts` equal things that the act does.
    pub(crate) fn of_parts(mut self, parts: u32) -> Self {
        self.parts = parts;
        self
    }

    fn time(&mut self) -> Duration {
        let start = Instant::now();
        (self.run)(self.per_sample);
        start.elapsed()
    }
}

/// Takes `rounds` samples of each subject, in turns, after warming all up: what disturbs the machine for a
/// while disturbs all of them.
pub(crate) fn compare(subjects: &mut [Subject<'_>], rounds: u32) {
    for subject in &mut *subjects {
        while subject.time() < SAMPLE && subject.per_sample < 1 << 24 {
            subject.per_sample *= 2;
        }
    }
    for _ in 0..rounds {
        for subject in &mut *subjects {
            let ns = subject.time().as_secs_f64() * 1e9;
            let sample = ns / f64::from(subject.per_sample) / f64::from(subject.parts);
            subject.samples.push(sample);
        }
    }
}

/// Prints the subjects; beside each how many times as long as the first of them it takes.
pub(crate) fn print(title: &str, subjects: &[Subject<'_>]) {
    let Some(first) = subjects.first() else { return };
    println!("\n{title:<58} {:>26} {:>9}", "ns: median (quartiles)", "ratio");
    for Subject { name, samples, .. } in subjects {
        let ratio = samples.median() / first.samples.median();
        println!("{name:<58} {:>26} {ratio:>8.1}x", samples.to_string());
    }
}

//! What came of the tests.

use std::time::Duration;

/// How many slow tests are listed.
const SLOWEST: usize = 10;

/// How a test ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    /// What it printed, where it was not printed at once.
    Failed(String),
    /// Why.
    Ignored(String),
}

/// A test that has run.
#[derive(Debug)]
pub(crate) struct Ended {
    /// With the binary in front.
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

/// All that have run.
#[derive(Debug, Default)]
pub(crate) struct Results(Vec<Ended>);

impl Results {
    pub(crate) fn add(&mut self, ended: Vec<Ended>) {
        self.0.extend(ended);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    /// Prints what failed, what was ignored and why, the slowest, and in the last line how many there are of each.
    /// Whether all is well.
    pub(crate) fn conclude(&mut self) -> bool {
        let ignored = self.of(|outcome| matches!(outcome, Outcome::Ignored(_)));
        let failed = self.of(|outcome| matches!(outcome, Outcome::Failed(_)));
        let (ignored_len, failed_len) = (ignored.len(), failed.len());
        for test in ignored {
            if let Outcome::Ignored(reason) = &test.outcome {
                println!("ignored: {}: {reason}", test.name);
            }
        }
        for test in failed {
            if let Outcome::Failed(said) = &test.outcome {
                println!("\nFAILED: {}\n{said}", test.name);
            }
        }
        self.0.sort_by_key(|test| std::cmp::Reverse(test.took));
        println!("\nThe slowest:");
        for test in self.0.iter().take(SLOWEST) {
            println!("{:7.1} s  {}", test.took.as_secs_f64(), test.name);
        }
        let passed = self.0.len() - failed_len - ignored_len;
        println!("{passed} passed, {failed_len} failed, {ignored_len} skipped");
        failed_len == 0 && passed > 0
    }

    fn of(&self, is_wanted: impl Fn(&Outcome) -> bool) -> Vec<&Ended> {
        self.0.iter().filter(|test| is_wanted(&test.outcome)).collect()
    }
}

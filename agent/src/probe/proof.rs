//! What the self-tests of a method at functions of the kernel have said, and whether the method can be used.

use std::time::Duration;

use thiserror::Error;
use tracing::{info, warn};

use super::Method;

/// Longest pause before a method that could not be tested is tried again: what the test lacks may be there soon.
const LONGEST_UNTESTED_PAUSE: Duration = Duration::from_secs(8);

/// Longest pause before a method that has missed requests is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(64);

/// Why a self-test was not passed.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TestError {
    /// The programs saw other requests than those of the test.
    #[error("its self-test failed: {0}")]
    Missed(String),
    /// The requests of the test could not be made or counted, for a reason that says nothing about the programs.
    #[error("it cannot be tested: {0}")]
    Untestable(String),
}

/// What the tests of one method have said.
///
/// A method is used only after it has passed a test: a compiler may have inlined the functions, and counts of 0 would look right.
/// From then on it stays in use until a test has shown that it misses requests. A test that cannot be made shows nothing; any
/// user may cause that, by taking the last of what the test needs. While ftrace is switched off, it counts as one that was failed.
#[derive(Clone, Debug, Default)]
pub(super) struct Proof {
    has_passed: bool,
    /// Why the last test could not be made.
    doubt: Option<String>,
}

impl Proof {
    /// Of a method that an earlier agent has left attached: it was in use.
    pub(super) const fn of_earlier_agent() -> Self {
        Self { has_passed: true, doubt: None }
    }

    /// Takes in the result of a test; `is_silent`: the kernel does not call the programs for now, as far as is known.
    ///
    /// # Errors
    ///
    /// Why the method cannot be used.
    pub(super) fn take(
        &mut self,
        method: Method,
        result: Result<(), TestError>,
        is_silent: bool,
    ) -> Result<(), TestError> {
        match result {
            Ok(()) => {
                if self.has_passed && self.doubt.is_some() {
                    info!(method = method.name(), "can be tested again, and works");
                }
                *self = Self { has_passed: true, doubt: None };
                Ok(())
            }
            Err(TestError::Untestable(why)) if self.has_passed && !is_silent => {
                if self.doubt.as_ref() != Some(&why) {
                    warn!(method = method.name(), "goes on counting, but cannot be tested: {why}");
                    self.doubt = Some(why);
                }
                Ok(())
            }
            Err(error) => {
                let doubt = match &error {
                    TestError::Untestable(why) => Some(why.clone()),
                    TestError::Missed(_) => None,
                };
                *self = Self { has_passed: false, doubt };
                Err(error)
            }
        }
    }

    /// The pause after the next failure, as long as `pause` before.
    pub(super) fn next_pause(&self, pause: Duration) -> Duration {
        let longest = if self.doubt.is_some() { LONGEST_UNTESTED_PAUSE } else { LONGEST_PAUSE };
        longest.min(pause * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed() -> Result<(), TestError> {
        Err(TestError::Missed("it saw nothing".to_owned()))
    }

    fn untestable() -> Result<(), TestError> {
        Err(TestError::Untestable("io_setup: EAGAIN".to_owned()))
    }

    #[test]
    fn a_method_in_use_fails_only_if_it_misses_requests() {
        for mut proof in [Proof::default(), Proof::of_earlier_agent()] {
            let mut take = |result| proof.take(Method::Aio, result, false);
            take(Ok(())).unwrap();
            for _ in 0..100 {
                take(untestable()).unwrap();
            }
            assert_eq!(take(missed()), missed());
            // Not before it has passed a test again.
            assert_eq!(take(untestable()), untestable());
            take(Ok(())).unwrap();
            take(untestable()).unwrap();
        }
        Proof::of_earlier_agent().take(Method::Aio, untestable(), false).unwrap();
    }

    #[test]
    fn a_method_that_the_kernel_may_not_call_has_to_pass_its_test() {
        let mut proof = Proof::of_earlier_agent();
        // Where the kernel calls programs without ftrace.
        proof.take(Method::Vfs, Ok(()), true).unwrap();
        assert_eq!(proof.take(Method::Vfs, untestable(), true), untestable());
        assert_eq!(proof.take(Method::Vfs, untestable(), false), untestable());
        proof.take(Method::Vfs, Ok(()), false).unwrap();
        proof.take(Method::Vfs, untestable(), false).unwrap();
    }

    #[test]
    fn a_method_that_was_never_tested_is_not_used_and_soon_tried_again() {
        let mut proof = Proof::default();
        let longest = |proof: &Proof| {
            (0..20).fold(Duration::from_secs(1), |pause, _| proof.next_pause(pause))
        };
        assert_eq!(proof.take(Method::Vfs, untestable(), false), untestable());
        assert_eq!(longest(&proof), LONGEST_UNTESTED_PAUSE);
        assert_eq!(proof.take(Method::Vfs, missed(), false), missed());
        assert_eq!(longest(&proof), LONGEST_PAUSE);
    }
}

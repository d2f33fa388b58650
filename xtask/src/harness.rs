//! Runs the tests of a crate that need something of the machine: one after the other, on the main thread. A test that
//! does not find what it needs is shown as ignored, with the reason.
//!
//! A crate of such tests has `harness = false` in its manifest, and in its root
//!
//! ```text
//! #[macro_use]
//! extern crate xtask_test;
//!
//! fn main() -> std::process::ExitCode {
//!     xtask::harness::run()
//! }
//! ```
//!
//! Its tests are functions under `#[test]`, as in any other.

use std::{
    env,
    panic::{self, AssertUnwindSafe},
    process::ExitCode,
};

#[doc(hidden)]
pub use inventory;
use libtest_mimic::{Arguments, Completion, FormatSetting, Trial};

/// Names modules by their paths, with commas between them: only the tests that are directly in these run.
pub const MODULES: &str = "KVMETER_TEST_MODULES";

/// A test, as `#[test]` registers it.
#[derive(Debug)]
pub struct Test {
    #[doc(hidden)]
    pub module: &'static str,
    #[doc(hidden)]
    pub name: &'static str,
    #[doc(hidden)]
    pub run: fn(),
}

inventory::collect!(Test);

/// Ends a test that cannot tell anything here.
struct Ignored(String);

/// Ends the test on whose thread this is called, which is shown as ignored for this reason.
pub fn ignore(reason: impl Into<String>) -> ! {
    panic::resume_unwind(Box::new(Ignored(reason.into())))
}

/// Runs the tests that the command line asks for, with the options of the compiler's own harness.
#[must_use]
pub fn run() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // What they use belongs to the whole machine.
    arguments.test_threads.get_or_insert(1);
    let modules = env::var(MODULES).ok();
    let is_asked_for = |test: &&Test| {
        modules.as_deref().is_none_or(|names| names.split(',').any(|name| test.is_in(name)))
    };
    let mut tests: Vec<&Test> = inventory::iter::<Test>().filter(is_asked_for).collect();
    tests.sort_by_key(|test| (test.module, test.name));
    let is_for_programs = arguments.format == Some(FormatSetting::Json);
    let trials = tests.into_iter().map(|test| test.trial(is_for_programs)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

impl Test {
    /// Its path without the crate.
    fn path(&self) -> String {
        let module = self.module.split_once("::").map_or("", |(_, module)| module);
        if module.is_empty() { self.name.to_owned() } else { format!("{module}::{}", self.name) }
    }

    fn is_in(&self, module: &str) -> bool {
        self.path().rsplit_once("::").is_some_and(|(path, _)| path == module)
    }

    fn trial(&'static self, is_for_programs: bool) -> Trial {
        Trial::ignorable_test(self.path(), move || {
            match panic::catch_unwind(AssertUnwindSafe(self.run)) {
                Ok(()) => Ok(Completion::Completed),
                Err(payload) => match payload.downcast::<Ignored>() {
                    Ok(ignored) => {
                        // This format has no place for it.
                        if is_for_programs {
                            println!("ignored: {}", ignored.0);
                        }
                        Ok(Completion::ignored_with(ignored.0))
                    }
                    Err(payload) => panic::resume_unwind(payload),
                },
            }
        })
    }
}

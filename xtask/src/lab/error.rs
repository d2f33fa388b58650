//! Errors of the lab.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Why a part of the lab failed.
#[derive(Debug, Error)]
pub enum LabError {
    /// A program cannot be started.
    #[error("{program} cannot be started; `cargo xtask setup` installs what is missing")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file cannot be read or written.
    #[error("{path} cannot be used", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A command failed.
    #[error("{program} failed: {said}")]
    Failed {
        /// Its name.
        program: String,
        /// Its output.
        said: String,
    },
    /// A wait timed out.
    #[error("Waited in vain for {limit:?}: {what}")]
    TooLate {
        /// The expected event.
        what: String,
        /// Length of the wait.
        limit: Duration,
    },
}

//! What goes wrong in the lab.

use std::{io, path::PathBuf, time::Duration};

use thiserror::Error;

/// Why something of the lab does not work.
#[derive(Debug, Error)]
pub enum LabError {
    /// A program.
    #[error("{program} cannot be started; `cargo xtask setup` installs what is missing")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// A file.
    #[error("{path} cannot be used", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A process did not do as it was told.
    #[error("{program} failed: {said}")]
    Failed {
        /// Its name.
        program: String,
        /// What it said.
        said: String,
    },
    /// Something did not happen.
    #[error("Waited in vain for {limit:?}: {what}")]
    TooLate {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
}

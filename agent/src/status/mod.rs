//! What a running agent tells of itself: one JSON document for every connection to a unix socket.
//!
//! [`model`] is the document, [`server`] gives it out, [`client`] fetches it, [`text`] prints it for
//! people. Nothing here asks the kernel or a VM: the server is given a function that makes the report.

pub mod client;
pub mod model;
pub mod server;
pub mod text;

use std::path::{Path, PathBuf};

pub use model::Report;
pub use server::Server;

/// The socket of an agent whose `state.runtime_dir` is `runtime_dir`.
#[must_use]
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("status.sock")
}

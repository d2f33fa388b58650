//! The status of a running agent: one JSON document for each connection to a unix socket.
//!
//! [`model`] is the document, [`vms()`] its part about VMs, [`server`] sends it, [`client`] fetches it, [`text`] prints it as
//! tables. Nothing here reads the kernel or a VM: the server gets a function that makes the report.

pub mod client;
mod date;
pub mod model;
pub mod server;
pub mod text;
mod vms;

use std::path::{Path, PathBuf};

pub use model::Report;
pub use server::Server;
pub use vms::vms;

/// Path of the status socket of an agent with this `state.runtime_dir`.
#[must_use]
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("status.sock")
}

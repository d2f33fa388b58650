//! Client: fetches the report of a running agent.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{Report, socket_path};
use crate::unix_socket::connect_within;

/// Deadline for the answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Largest document in bytes: about ten times that of 65,535 threads.
const MAX_LEN: usize = 128 << 20;

/// Why there is no report.
#[derive(Debug, Error)]
pub enum ClientError {
    /// No process listens.
    #[error(
        "No kvmeter runs with the status socket {socket}; start it with `kvmeter run`, or name its \
         configuration with --config", socket = socket.display()
    )]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The socket is readable for its owner and group only.
    #[error(
        "Not allowed to read the status socket {socket}; use root or the group of the socket",
        socket = socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection failed or timed out.
    #[error("Cannot read the status socket {socket}", socket = socket.display())]
    Io {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The document is incomplete or of another version.
    #[error(
        "The document from the status socket {socket} is no report of this version; if another version \
         runs, restart it", socket = socket.display()
    )]
    NoReport {
        /// The socket.
        socket: PathBuf,
        /// The error.
        source: serde_json::Error,
    },
}

/// Fetches the report of the agent with this `state.runtime_dir`: the document, and the report parsed from it.
///
/// # Errors
///
/// [`ClientError`]
pub fn fetch(runtime_dir: &Path) -> Result<(String, Report), ClientError> {
    let socket = socket_path(runtime_dir);
    match read(&socket) {
        Ok(document) => match serde_json::from_str(&document) {
            Ok(report) => Ok((document, report)),
            Err(source) => Err(ClientError::NoReport { socket, source }),
        },
        Err(source) => Err(match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NotRunning { socket }
            }
            io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket },
            _ => ClientError::Io { socket, source },
        }),
    }
}

fn read(socket: &Path) -> io::Result<String> {
    let until = Instant::now() + DEADLINE;
    let mut stream = connect_within(socket, DEADLINE)?;
    let mut document = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(len) => document.extend_from_slice(part.get(..len).unwrap_or_default()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(e) => return Err(e),
        }
        if document.len() > MAX_LEN {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "the document has more than 128 MiB",
            ));
        }
    }
    String::from_utf8(document).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

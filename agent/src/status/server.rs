//! Sends the report to each client. No client can block the agent: a connection is only written to, few are served at once,
//! and each has a deadline.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read, Write},
    os::unix::{
        fs::{OpenOptionsExt, PermissionsExt},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time,
};
use tracing::{debug, warn};

use super::{Report, socket_path};

/// Number of connections served and of reports made at once; others wait in the listener's queue.
const AT_ONCE: usize = 4;

/// Deadline of a connection.
const DEADLINE: Duration = Duration::from_secs(2);

/// Retry delay after a failed accept(2), mostly for a temporary lack of descriptors.
const PAUSE: Duration = Duration::from_millis(100);

/// The status socket, and the lock by which this agent is the only one in its `runtime_dir`.
#[derive(Debug)]
pub struct Server {
    listener: StdListener,
    path: PathBuf,
    /// Locked while this agent runs; the kernel unlocks it when the process exits for any reason.
    _lock: File,
}

/// Why there is no status socket.
#[derive(Debug, Error)]
pub enum ServerError {
    /// Another agent holds the lock: both would count the same VMs and register the same subtree.
    #[error(
        "Another kvmeter runs with pid {pid} and state.runtime_dir {dir}; end it first, or give this one \
         directories of its own", dir = dir.display()
    )]
    AlreadyRunning {
        /// Process id in its lock file.
        pid: String,
        /// The directory.
        dir: PathBuf,
    },
    /// The directory or a file in it cannot be used.
    #[error("Cannot {what} {path}; state.runtime_dir must be a directory that kvmeter may write", path = path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Server {
    /// Creates `runtime_dir` if it is missing, locks it, and replaces the socket of an earlier agent. The socket has mode
    /// 0660.
    ///
    /// # Errors
    ///
    /// [`ServerError::AlreadyRunning`] while another agent runs, else [`ServerError::Io`].
    pub fn bind(runtime_dir: &Path) -> Result<Self, ServerError> {
        let failed = |what, path: &Path| {
            let path = path.to_owned();
            move |source| ServerError::Io { what, path, source }
        };
        fs::create_dir_all(runtime_dir).map_err(failed("make", runtime_dir))?;
        let lock = lock(runtime_dir)?;

        // Under another name until the mode is set, so that a client finds the old socket or the finished one.
        let unfinished = runtime_dir.join("status.sock.new");
        match fs::remove_file(&unfinished) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &unfinished)(e));
            }
            _ => {}
        }
        let listener = StdListener::bind(&unfinished).map_err(failed("listen on", &unfinished))?;
        listener.set_nonblocking(true).map_err(failed("listen on", &unfinished))?;
        fs::set_permissions(&unfinished, Permissions::from_mode(0o660))
            .map_err(failed("set the mode of", &unfinished))?;
        let path = socket_path(runtime_dir);
        fs::rename(&unfinished, &path).map_err(failed("replace", &path))?;
        Ok(Self { listener, path, _lock: lock })
    }

    /// Serves until the future is dropped. `report` makes the document of a connection, on a thread that may block.
    ///
    /// # Errors
    ///
    /// When the socket cannot be registered with the runtime. An error of a connection ends that connection only.
    pub async fn serve<F>(self, report: F) -> io::Result<()>
    where
        F: Fn() -> Report + Send + Sync + 'static,
    {
        let report = Arc::new(report);
        let listener = UnixListener::from_std(self.listener.try_clone()?)?;
        let free = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let Ok(permit) = Arc::clone(&free).acquire_owned().await else { return Ok(()) };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let report = Arc::clone(&report);
                    tokio::spawn(async move {
                        match time::timeout(DEADLINE, answer(stream, report, permit)).await {
                            Ok(Ok(())) => {}
                            Ok(Err(e)) => debug!("A status connection failed: {e}"),
                            Err(_) => debug!("A status connection was not served in time"),
                        }
                    });
                }
                Err(e) => {
                    warn!("Cannot accept a status connection: {e}");
                    time::sleep(PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(e) = fs::remove_file(&self.path) {
            debug!("Cannot remove {}: {e}", self.path.display());
        }
    }
}

async fn answer<F>(
    mut stream: UnixStream,
    report: Arc<F>,
    permit: OwnedSemaphorePermit,
) -> io::Result<()>
where
    F: Fn() -> Report + Send + Sync + 'static,
{
    // The permit stays with a report that outlives its connection: the number of threads is bounded.
    let (document, _permit) = tokio::task::spawn_blocking(move || {
        let mut document = serde_json::to_vec(&report())?;
        document.push(b'\n');
        io::Result::Ok((document, permit))
    })
    .await??;
    stream.write_all(&document).await?;
    stream.shutdown().await
}

/// Takes the lock of a running agent and writes the process id into the file.
fn lock(runtime_dir: &Path) -> Result<File, ServerError> {
    let path = runtime_dir.join("lock");
    let failed = |source| ServerError::Io { what: "lock", path: path.clone(), source };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // The file is empty if its owner has not written it yet.
            let read = Read::by_ref(&mut file).take(20).read_to_string(&mut pid);
            let known = read.is_ok() && !pid.trim().is_empty();
            return Err(ServerError::AlreadyRunning {
                pid: if known { pid.trim().to_owned() } else { "unknown".to_owned() },
                dir: runtime_dir.to_owned(),
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

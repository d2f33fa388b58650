//! Watches for the socket of a local libvirt daemon.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::inotify,
};

use crate::sources::timespec;

/// Directory of the local daemons' sockets.
const DIR: &str = "/run/libvirt";

/// Parent of [`DIR`], which the first daemon creates.
const PARENT: &str = "/run";

/// Delay between a socket's creation, which inotify reports, and the attempt to connect: the daemon listens a moment later.
const LISTEN_DELAY: Duration = Duration::from_millis(100);

/// An inotify instance on the directory of the socket.
#[derive(Debug)]
pub(super) struct SocketWatch(OwnedFd);

impl SocketWatch {
    /// Watches for the socket of a URI's daemon. `None`: the daemon is not local, or inotify failed.
    pub(super) fn of(uri: &str) -> Option<Self> {
        let (scheme, rest) = uri.split_once("://")?;
        let is_local = rest.starts_with('/') && !scheme.contains('+') && scheme != "test";
        if !is_local {
            return None;
        }
        let fd =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        let named =
            rest.split_once("socket=").map(|(_, path)| path.split('&').next().unwrap_or(path));
        let dir = named.and_then(|path| Path::new(path).parent()).unwrap_or_else(|| Path::new(DIR));
        inotify::add_watch(&fd, if dir.exists() { dir } else { Path::new(PARENT) }, flags).ok()?;
        Some(Self(fd))
    }

    /// Waits until a file is created in the directory, at most for `limit`. Returns whether one was.
    pub(super) fn wait(self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = timespec(limit);
        let appeared = matches!(poll(&mut fds, Some(&limit)), Ok(ready) if ready > 0);
        if appeared {
            std::thread::sleep(LISTEN_DELAY);
        }
        appeared
    }
}

//! The moment at which a libvirt daemon of this host opens its socket.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
};

/// Where the daemons of this host have their sockets.
const DIR: &str = "/run/libvirt";

/// The directory in which [`DIR`] appears with the first daemon.
const PARENT: &str = "/run";

/// A socket is seen when it is made; a moment later the daemon takes connections.
const MOMENT: Duration = Duration::from_millis(100);

/// A look-out for files that appear.
#[derive(Debug)]
pub(super) struct SocketWatch(OwnedFd);

impl SocketWatch {
    /// Looks out for sockets of libvirt; `None` where the URI is not that of a daemon of this host.
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

    /// Waits until something appears, or for so long. Whether something has.
    pub(super) fn wait(self, limit: Duration) -> bool {
        let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        };
        let appeared = matches!(poll(&mut fds, Some(&limit)), Ok(ready) if ready > 0);
        if appeared {
            std::thread::sleep(MOMENT);
        }
        appeared
    }
}

//! The epoll instance on which the source's thread sleeps: BPF events, uevents, process exits, requests from other
//! threads, and the stop signal.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll},
    io::Errno,
};

use crate::sources::timespec;

/// The kind of descriptor that became readable.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ready {
    /// The ring buffer of the BPF programs.
    Events,
    /// There is news of uevents.
    Uevents,
    /// The source is to stop.
    Stop,
    /// Another thread has queued a request or a result.
    Woken,
    /// The process with this id has exited.
    Exited(u32),
}

/// An epoll instance with the source's descriptors.
#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    stop: OwnedFd,
    wake: OwnedFd,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let poller = Self { epoll, stop, wake };
        poller.add(poller.stop.as_fd(), Ready::Stop)?;
        poller.add(poller.wake.as_fd(), Ready::Woken)?;
        Ok(poller)
    }

    /// An eventfd; writing to it makes [`Poller::wait`] return [`Ready::Stop`].
    pub(super) fn stop_handle(&self) -> io::Result<OwnedFd> {
        self.stop.try_clone()
    }

    /// An eventfd; writing to it makes [`Poller::wait`] return [`Ready::Woken`].
    pub(super) fn wake_handle(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// Resets the wake eventfd. To be called before the queues are drained, so that no request is missed.
    pub(super) fn clear_wake(&self) {
        // EAGAIN: it is reset already.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Adds a descriptor. Closing it removes it.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, ready: Ready) -> io::Result<()> {
        let data = epoll::EventData::new_u64(ready.number());
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Removes a descriptor.
    pub(super) fn remove(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        Ok(epoll::delete(&self.epoll, fd)?)
    }

    /// Waits for this long, whatever becomes readable, unless the source is to stop.
    pub(super) fn rest(&self, length: Duration) -> io::Result<()> {
        let mut stop = [PollFd::new(&self.stop, PollFlags::IN)];
        match poll(&mut stop, Some(&timespec(length))) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until a descriptor is readable, at most for `limit` (`None` = no limit).
    pub(super) fn wait(&self, limit: Option<Duration>) -> io::Result<Vec<Ready>> {
        let limit = limit.map(timespec);
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().filter_map(|event| Ready::of(event.data.u64())).collect())
    }
}

impl Ready {
    /// First epoll datum that is not a process id.
    const FIRST_NON_PID: u64 = 1 << 32;

    fn number(self) -> u64 {
        match self {
            Self::Exited(pid) => u64::from(pid),
            Self::Events => Self::FIRST_NON_PID,
            Self::Uevents => Self::FIRST_NON_PID + 1,
            Self::Stop => Self::FIRST_NON_PID + 2,
            Self::Woken => Self::FIRST_NON_PID + 3,
        }
    }

    fn of(number: u64) -> Option<Self> {
        match u32::try_from(number) {
            Ok(pid) => Some(Self::Exited(pid)),
            Err(_) => [Self::Events, Self::Uevents, Self::Stop, Self::Woken]
                .into_iter()
                .find(|ready| ready.number() == number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_descriptor_reports_its_kind() {
        let poller = Poller::new().unwrap();
        assert_eq!(poller.wait(Some(Duration::ZERO)).unwrap(), []);
        let other = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        poller.add(other.as_fd(), Ready::Exited(7)).unwrap();
        assert_eq!(poller.wait(None).unwrap(), [Ready::Exited(7)]);
        drop(other);
        rustix::io::write(poller.stop_handle().unwrap(), &[1; 8]).unwrap();
        assert_eq!(poller.wait(None).unwrap(), [Ready::Stop]);
    }
}

//! Everything that may wake the source: the programs' events, the kernel's uevents, the ends of processes, and
//! the order to stop.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

/// What is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Ready {
    /// The programs' ring.
    Events,
    /// The socket of uevents.
    Uevents,
    /// The order to stop.
    Stop,
    /// Somebody wants a process looked at.
    Woken,
    /// The process with this id has ended.
    Exited(u32),
}

/// Descriptors that are waited for together.
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

    /// Whoever writes a number to this stops the source.
    pub(super) fn stop_handle(&self) -> io::Result<OwnedFd> {
        self.stop.try_clone()
    }

    /// Whoever writes a number to this wakes the source.
    pub(super) fn wake_handle(&self) -> io::Result<OwnedFd> {
        self.wake.try_clone()
    }

    /// What was wake is about to be answered.
    pub(super) fn clear_wake(&self) {
        // There is nothing to read where somebody else was faster.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Waits for this descriptor too, until its owner closes it.
    pub(super) fn add(&self, fd: BorrowedFd<'_>, ready: Ready) -> io::Result<()> {
        let data = epoll::EventData::new_u64(ready.number());
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// Waits until something is ready, or for so long.
    pub(super) fn wait(&self, limit: Option<Duration>) -> io::Result<Vec<Ready>> {
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let mut events = Vec::with_capacity(64);
        match epoll::wait(&self.epoll, spare_capacity(&mut events), limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(events.iter().filter_map(|event| Ready::of(event.data.u64())).collect())
    }
}

impl Ready {
    /// Process ids take the lower half, so the others begin above.
    const OTHERS: u64 = 1 << 32;

    fn number(self) -> u64 {
        match self {
            Self::Exited(pid) => u64::from(pid),
            Self::Events => Self::OTHERS,
            Self::Uevents => Self::OTHERS + 1,
            Self::Stop => Self::OTHERS + 2,
            Self::Woken => Self::OTHERS + 3,
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
    fn what_is_ready_is_told_apart() {
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

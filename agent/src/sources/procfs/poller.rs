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
    Asked,
    /// The process with this id has ended.
    End(u32),
}

/// Descriptors that are waited for together.
#[derive(Debug)]
pub(super) struct Watch {
    epoll: OwnedFd,
    stop: OwnedFd,
    asked: OwnedFd,
}

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let stop = eventfd(0, EventfdFlags::CLOEXEC)?;
        let asked = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let watch = Self { epoll, stop, asked };
        watch.add(watch.stop.as_fd(), Ready::Stop)?;
        watch.add(watch.asked.as_fd(), Ready::Asked)?;
        Ok(watch)
    }

    /// Whoever writes a number to this stops the source.
    pub(super) fn stop(&self) -> io::Result<OwnedFd> {
        self.stop.try_clone()
    }

    /// Whoever writes a number to this wakes the source.
    pub(super) fn asked(&self) -> io::Result<OwnedFd> {
        self.asked.try_clone()
    }

    /// What was asked is about to be answered.
    pub(super) fn take_asked(&self) {
        // There is nothing to read where somebody else was faster.
        let _ = rustix::io::read(&self.asked, &mut [0; 8]);
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
            Self::End(pid) => u64::from(pid),
            Self::Events => Self::OTHERS,
            Self::Uevents => Self::OTHERS + 1,
            Self::Stop => Self::OTHERS + 2,
            Self::Asked => Self::OTHERS + 3,
        }
    }

    fn of(number: u64) -> Option<Self> {
        match u32::try_from(number) {
            Ok(pid) => Some(Self::End(pid)),
            Err(_) => [Self::Events, Self::Uevents, Self::Stop, Self::Asked]
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
        let watch = Watch::new().unwrap();
        assert_eq!(watch.wait(Some(Duration::ZERO)).unwrap(), []);
        let other = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
        watch.add(other.as_fd(), Ready::End(7)).unwrap();
        assert_eq!(watch.wait(None).unwrap(), [Ready::End(7)]);
        drop(other);
        rustix::io::write(watch.stop().unwrap(), &[1; 8]).unwrap();
        assert_eq!(watch.wait(None).unwrap(), [Ready::Stop]);
    }
}

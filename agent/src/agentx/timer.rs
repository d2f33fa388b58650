//! The timer of a connection.

use std::{
    future::pending,
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep_until,
};

/// What tells the time to a connection.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TimerKind {
    /// A timer of the kernel, which wakes up once. The runtime's own goes through a wheel: a deadline a minute away
    /// wakes the agent several times on its way.
    #[default]
    Kernel,
    /// The runtime's, whose clock a test can pause.
    Runtime,
}

/// Rings at a time that is set.
#[derive(Debug)]
pub(super) struct Timer {
    timer: Option<AsyncFd<OwnedFd>>,
    deadline: Option<Instant>,
}

impl Timer {
    /// One that never rings until it is set.
    pub(super) fn new(timer: TimerKind) -> io::Result<Self> {
        let timer = match timer {
            TimerKind::Kernel => Some(kernel_timer()?),
            TimerKind::Runtime => None,
        };
        Ok(Self { timer, deadline: None })
    }

    /// When it rings; `None` = never.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Rings then, and not when it was to ring before.
    pub(super) fn set(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        // 0 would stop it.
        const SOONEST: Duration = Duration::from_nanos(1);
        self.deadline = deadline;
        let Some(timer) = &self.timer else { return Ok(()) };
        let left = deadline.map_or(Duration::ZERO, |deadline| {
            deadline.saturating_duration_since(Instant::now()).max(SOONEST)
        });
        let value = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            },
        };
        timerfd_settime(timer.get_ref(), TimerfdTimerFlags::empty(), &value)?;
        Ok(())
    }

    /// Waits until it rings. May be dropped at any await.
    pub(super) async fn fired(&self) -> io::Result<()> {
        let Some(timer) = &self.timer else {
            match self.deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => pending().await,
            }
            return Ok(());
        };
        loop {
            let mut ready = timer.readable().await?;
            let mut rings = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut rings)?)) {
                Ok(read) => return read.map(drop),
                // It was set anew meanwhile.
                Err(_would_block) => {}
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for descriptors that somebody else may close; this one is owned"
)]
fn kernel_timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    AsyncFd::with_interest(timer, Interest::READABLE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rings_when_it_is_set_to_and_not_before() {
        for timer in [TimerKind::Kernel, TimerKind::Runtime] {
            let mut timer = Timer::new(timer).unwrap();
            let start = Instant::now();
            timer.set(Some(start + Duration::from_secs(3600))).unwrap();
            timer.set(Some(start + Duration::from_millis(20))).unwrap();
            timer.fired().await.unwrap();
            assert!(start.elapsed() >= Duration::from_millis(20), "{timer:?}");
            // What is past rings at once.
            timer.set(Some(start)).unwrap();
            timer.fired().await.unwrap();
            timer.set(None).unwrap();
            let silence = tokio::time::timeout(Duration::from_millis(20), timer.fired()).await;
            assert!(silence.is_err(), "{timer:?} rings though nobody set it");
        }
    }
}

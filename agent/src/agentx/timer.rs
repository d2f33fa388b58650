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

/// The timer that a connection uses.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum TimerKind {
    /// A timerfd, which wakes the agent once. The runtime's timer wheel wakes it several times for a deadline a minute away.
    #[default]
    Kernel,
    /// The runtime's timer, whose clock a test can pause.
    Runtime,
}

/// Fires at a deadline that can be changed.
#[derive(Debug)]
pub(super) struct Timer {
    timer: Option<AsyncFd<OwnedFd>>,
    deadline: Option<Instant>,
}

impl Timer {
    /// A timer without a deadline.
    pub(super) fn new(timer: TimerKind) -> io::Result<Self> {
        let timer = match timer {
            TimerKind::Kernel => Some(kernel_timer()?),
            TimerKind::Runtime => None,
        };
        Ok(Self { timer, deadline: None })
    }

    /// The deadline; `None` = never.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Replaces the deadline.
    pub(super) fn set(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        // timerfd_settime(2): 0 disarms the timer.
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

    /// Waits until the timer fires. May be dropped at any await.
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
            let mut expirations = [0; 8];
            match ready.try_io(|timer| Ok(rustix::io::read(timer.get_ref(), &mut expirations)?)) {
                Ok(read) => return read.map(drop),
                // The deadline was replaced meanwhile.
                Err(_would_block) => {}
            }
        }
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for descriptors that other code may close; this one is owned"
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
    async fn it_fires_at_the_deadline_and_not_before() {
        for timer in [TimerKind::Kernel, TimerKind::Runtime] {
            let mut timer = Timer::new(timer).unwrap();
            let start = Instant::now();
            timer.set(Some(start + Duration::from_secs(3600))).unwrap();
            timer.set(Some(start + Duration::from_millis(20))).unwrap();
            timer.fired().await.unwrap();
            assert!(start.elapsed() >= Duration::from_millis(20), "{timer:?}");
            // A deadline in the past fires at once.
            timer.set(Some(start)).unwrap();
            timer.fired().await.unwrap();
            timer.set(None).unwrap();
            let silence = tokio::time::timeout(Duration::from_millis(20), timer.fired()).await;
            assert!(silence.is_err(), "{timer:?} fires without a deadline");
        }
    }
}

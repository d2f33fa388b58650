//! The thread that takes uevents out of the kernel's queue.
//!
//! The queue holds some two hundred, and what comes to a full queue is lost. A user makes as many in a tenth of a second, in
//! which the source's thread may scan, or rest. This thread does nothing else, and keeps of any number of uevents of one thread
//! one.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    io::Errno,
};

use super::uevent::{self, Uevent};
use crate::{sources::timespec, worker::Facts};

/// Most threads that are kept. Of more, it is known only that there were some.
const MAX_THREADS: usize = 10_000;

/// Most uevents that are read in one turn: a flood may be faster than the thread.
const MAX_UEVENTS: usize = 10_000;

/// Pause after the queue was empty: a flood wakes the thread a hundred times a second, and fills the queue in a longer time.
const PAUSE: Duration = Duration::from_millis(10);

/// Pause after an error other than lost uevents.
const ERROR_PAUSE: Duration = Duration::from_secs(1);

/// What the uevents since the last look say.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Threads that have created a VM.
    pub(super) created: BTreeSet<u32>,
    /// Threads whose VM was destroyed.
    pub(super) destroyed: BTreeSet<u32>,
    /// The set of online CPUs has changed.
    pub(super) has_cpus: bool,
    /// There were uevents that are not known.
    pub(super) are_lost: bool,
    /// Why uevents could not be read.
    pub(super) error: Option<String>,
    /// Whether the source's thread has been woken for it.
    is_told: bool,
}

impl News {
    fn note(&mut self, uevent: Uevent) {
        let (threads, tid) = match uevent {
            Uevent::VmCreated(tid) => (&mut self.created, tid),
            Uevent::VmDestroyed(tid) => (&mut self.destroyed, tid),
            Uevent::Cpus => {
                self.has_cpus = true;
                return;
            }
        };
        if threads.len() < MAX_THREADS {
            threads.insert(tid);
        } else if !threads.contains(&tid) {
            self.are_lost = true;
        }
    }
}

/// The other threads' side of the thread.
#[derive(Debug)]
pub(super) struct UeventReader {
    news: Arc<Mutex<News>>,
    /// An eventfd that is readable while there is news.
    ready: OwnedFd,
}

impl UeventReader {
    /// Starts the thread, which ends when `stop` is readable, and ends the agent by `facts` if it panics.
    pub(super) fn start(stop: OwnedFd, facts: &Facts) -> io::Result<Self> {
        let socket = uevent::open()?;
        let ready = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let thread = Thread { socket, stop, ready: ready.try_clone()?, news: Arc::default() };
        let news = Arc::clone(&thread.news);
        let end = facts.end_guard("uevents");
        let run = move || {
            let _end = end;
            thread.run();
        };
        std::thread::Builder::new().name("uevents".to_owned()).spawn(run)?;
        Ok(Self { news, ready })
    }

    /// The descriptor that is readable while there is news.
    pub(super) fn ready(&self) -> BorrowedFd<'_> {
        self.ready.as_fd()
    }

    /// What there is since the last call.
    pub(super) fn take(&self) -> News {
        // Before the news is taken, so that none is missed. EAGAIN: there is none.
        let _ = rustix::io::read(&self.ready, &mut [0; 8]);
        std::mem::take(&mut *lock(&self.news))
    }
}

fn lock(news: &Mutex<News>) -> MutexGuard<'_, News> {
    // A panic cannot leave the sets inconsistent.
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    socket: OwnedFd,
    stop: OwnedFd,
    ready: OwnedFd,
    news: Arc<Mutex<News>>,
}

impl Thread {
    fn run(self) {
        let mut are_lost = false;
        while !self.is_to_stop(Some(self.socket.as_fd()), None) {
            let length = match self.turn(|| uevent::next(&self.socket), &mut are_lost) {
                Ok(true) => PAUSE,
                Ok(false) => continue,
                Err(error) => {
                    self.tell(|news| news.error = Some(error.to_string()));
                    ERROR_PAUSE
                }
            };
            if self.is_to_stop(None, Some(length)) {
                break;
            }
        }
    }

    /// Reads uevents until the queue is empty, at most [`MAX_UEVENTS`]. Returns whether the queue is empty. `are_lost`: uevents were
    /// lost since the queue was empty.
    fn turn(
        &self,
        mut next: impl FnMut() -> io::Result<Option<Uevent>>,
        are_lost: &mut bool,
    ) -> io::Result<bool> {
        let mut is_empty = false;
        for _ in 0..MAX_UEVENTS {
            match next() {
                Ok(Some(uevent)) => self.tell(|news| news.note(uevent)),
                Ok(None) => {
                    is_empty = true;
                    break;
                }
                // One error for all that are lost until the queue is empty: netlink_overrun() in net/netlink/af_netlink.c. To be
                // told until then: what is lost after a scan of all processes, and before the queue is empty, would never be seen.
                Err(error) if error.raw_os_error() == Some(Errno::NOBUFS.raw_os_error()) => {
                    *are_lost = true;
                }
                Err(error) => return Err(error),
            }
        }
        if *are_lost {
            self.tell(|news| news.are_lost = true);
        }
        *are_lost &= !is_empty;
        Ok(is_empty)
    }

    fn tell(&self, what: impl FnOnce(&mut News)) {
        let was_told = {
            let mut news = lock(&self.news);
            what(&mut news);
            std::mem::replace(&mut news.is_told, true)
        };
        if !was_told {
            // EAGAIN: it is readable anyway.
            let _ = rustix::io::write(&self.ready, &[1; 8]);
        }
    }

    /// Waits until there is something to read, or for this long. Returns whether the thread is to stop.
    fn is_to_stop(&self, other: Option<BorrowedFd<'_>>, limit: Option<Duration>) -> bool {
        let stop = self.stop.as_fd();
        let mut both =
            [stop, other.unwrap_or(stop)].map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        // After EINTR, the only possible error, the thread goes on.
        let waited = poll(&mut both, limit.map(timespec).as_ref());
        waited.is_ok_and(|_| !both[0].revents().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_uevents_of_a_thread_one_is_kept_and_of_many_threads_that_there_were_some() {
        let mut news = News::default();
        for _ in 0..2 * MAX_THREADS {
            news.note(Uevent::VmCreated(7));
            news.note(Uevent::VmDestroyed(7));
        }
        assert_eq!((news.created.len(), news.destroyed.len(), news.are_lost), (1, 1, false));
        for tid in (1..).take(MAX_THREADS) {
            news.note(Uevent::VmCreated(tid));
        }
        assert!(!news.are_lost);
        news.note(Uevent::VmCreated(1 << 30));
        assert!(news.are_lost);
        assert_eq!(news.created.len(), MAX_THREADS);
    }

    #[test]
    fn uevents_that_a_flood_drowns_are_told_of_before_it_ends() {
        let eventfd = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let thread =
            Thread { socket: eventfd(), stop: eventfd(), ready: eventfd(), news: Arc::default() };
        let reader = UeventReader {
            news: Arc::clone(&thread.news),
            ready: thread.ready.try_clone().unwrap(),
        };
        let mut are_lost = false;
        let mut first = Some(Err(Errno::NOBUFS.into()));
        let mut flood = || first.take().unwrap_or(Ok(Some(Uevent::VmCreated(7))));
        for _ in 0..2 {
            assert!(!thread.turn(&mut flood, &mut are_lost).unwrap());
            let news = reader.take();
            assert!(news.are_lost && news.created.contains(&7));
        }
        for is_last in [true, false] {
            assert!(thread.turn(|| Ok(None), &mut are_lost).unwrap());
            assert_eq!(reader.take().are_lost, is_last);
        }
    }

    #[test]
    fn the_thread_ends_when_the_source_stops() {
        let stop = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let failures = tokio::sync::mpsc::unbounded_channel().0;
        let facts = Facts::new(crossbeam_channel::unbounded().0, failures);
        let reader = UeventReader::start(stop.try_clone().unwrap(), &facts).unwrap();
        let news = reader.take();
        assert!(!news.are_lost && news.error.is_none());
        rustix::io::write(&stop, &[1; 8]).unwrap();
        let start = std::time::Instant::now();
        // Its clone of the news is gone with it.
        while Arc::strong_count(&reader.news) > 1 {
            assert!(start.elapsed() < Duration::from_secs(10), "it goes on");
            std::thread::yield_now();
        }
    }
}

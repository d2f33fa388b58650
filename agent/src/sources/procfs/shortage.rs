//! What an error of reading a process says: the process or a part of it is gone, or the agent lacks what it needs to read. A
//! scan that took the second for the first would report what is there as ended.

use std::{
    io,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use rustix::io::Errno;

/// For how long a shortage goes on after a failed read: what could not be read is tried again each second.
const GOES_ON: Duration = Duration::from_secs(3);

/// For how long a shortage is shown: the agent that lacks descriptors cannot answer for its status either.
const SHOWN: Duration = Duration::from_secs(60);

/// Whether an error is about what the agent lacks: descriptors, memory or threads.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    let error = Errno::from_io_error(error);
    matches!(error, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::AGAIN))
}

/// Whether an error says that a process, or a part of it, is gone.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// What was read; `None` = it is gone, or cannot be read.
///
/// # Errors
///
/// Those about what the agent lacks.
pub(super) fn if_there<T, E: Into<io::Error>>(result: Result<T, E>) -> io::Result<Option<T>> {
    match result.map_err(Into::into) {
        Ok(found) => Ok(Some(found)),
        Err(error) if is_shortage(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

/// Whether the error of looking at a descriptor says that it was closed: otherwise the next look says the same.
///
/// # Errors
///
/// The error itself, if it is about what the agent lacks.
pub(super) fn is_closed(error: io::Error) -> io::Result<bool> {
    if is_shortage(&error) { Err(error) } else { Ok(is_gone(&error)) }
}

/// What the agent lacks, as the status shows it.
#[derive(Debug, Default)]
pub(super) struct Shortages(Mutex<Option<Shortage>>);

#[derive(Debug)]
struct Shortage {
    since: SystemTime,
    last: Instant,
    error: String,
}

impl Shortages {
    fn known(&self) -> MutexGuard<'_, Option<Shortage>> {
        // Each change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the error of a read, if it is about what the agent lacks.
    pub(super) fn note(&self, error: &io::Error, now: Instant) {
        if is_shortage(error) {
            let mut known = self.known();
            let same = known.as_ref().filter(|known| now < known.last + GOES_ON);
            let since = same.map_or_else(SystemTime::now, |known| known.since);
            *known = Some(Shortage { since, last: now, error: error.to_string() });
        }
    }

    /// What the agent has lacked of late; `None` = nothing.
    pub(super) fn of_late(&self, now: Instant) -> Option<String> {
        let known = self.known();
        known.as_ref().filter(|known| now < known.last + SHOWN).map(|known| known.error.clone())
    }

    /// Since when the agent lacks something; `None` = it does not now.
    pub(super) fn since(&self, now: Instant) -> Option<SystemTime> {
        let known = self.known();
        known.as_ref().filter(|known| now < known.last + GOES_ON).map(|known| known.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_shown_while_it_goes_on_and_for_a_while_after() {
        let (shortages, start) = (Shortages::default(), Instant::now());
        shortages.note(&Errno::NOENT.into(), start);
        assert_eq!((shortages.of_late(start), shortages.since(start)), (None, None));
        shortages.note(&Errno::MFILE.into(), start);
        let since = shortages.since(start + GOES_ON / 2);
        assert!(since.is_some());
        let second = start + GOES_ON / 2;
        shortages.note(&Errno::NFILE.into(), second);
        assert_eq!(shortages.since(start + GOES_ON), since);
        let later = second + GOES_ON;
        assert_eq!(shortages.since(later), None);
        let error = shortages.of_late(later).unwrap();
        assert!(error.starts_with("Too many open files in system"), "{error}");
        assert_eq!(shortages.of_late(second + SHOWN), None);
    }

    #[test]
    fn a_shortage_is_no_end() {
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM] {
            assert!(if_there::<(), _>(Err(errno)).is_err(), "{errno}");
        }
        for errno in [Errno::NOENT, Errno::SRCH, Errno::ACCESS, Errno::PERM, Errno::STALE] {
            assert!(matches!(if_there::<(), _>(Err(errno)), Ok(None)), "{errno}");
        }
        assert!(matches!(if_there(Ok::<_, Errno>(7)), Ok(Some(7))));
        assert!(is_gone(&Errno::SRCH.into()) && is_gone(&Errno::NOENT.into()));
        assert!(!is_gone(&Errno::MFILE.into()));
    }
}

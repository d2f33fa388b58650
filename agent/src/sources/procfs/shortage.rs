//! What an error of reading a process says: the process or a part of it is gone, or the agent lacks what it needs to read. A
//! scan that took the second for the first would report what is there as ended.

use std::io;

use rustix::io::Errno;

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

#[cfg(test)]
mod tests {
    use super::*;

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

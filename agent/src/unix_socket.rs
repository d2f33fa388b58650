//! Connecting to a unix socket, with a timeout.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// Connects with the timeout `deadline` (greater than 0). [`UnixStream::connect`] has no timeout for a listener that does not
/// accept.
///
/// # Errors
///
/// As `connect(2)`; a listener that does not accept in time is [`io::ErrorKind::TimedOut`].
pub(crate) fn connect_within(path: &Path, deadline: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // SO_SNDTIMEO bounds the wait for room in the listener's queue (unix_stream_connect in net/unix/af_unix.c).
    set_socket_timeout(&socket, Timeout::Send, Some(deadline))?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(rustix::io::Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
        Err(e) => return Err(e.into()),
    }
    set_socket_timeout(&socket, Timeout::Send, None)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{os::unix::net::UnixListener, time::Instant};

    #[test]
    fn a_listener_that_does_not_accept_times_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let begin = Instant::now();
        let mut held = Vec::new();
        let error = loop {
            match connect_within(&path, Duration::from_millis(50)) {
                Ok(stream) => held.push(stream),
                Err(e) => break e,
            }
            assert!(held.len() < 10, "the queue of 0 never filled");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(begin.elapsed() >= Duration::from_millis(50));
    }
}

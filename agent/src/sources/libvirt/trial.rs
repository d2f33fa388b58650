//! A trial of a connection, for `kvmeter check`: opened as the agent does, read-only, and closed again.

use std::{
    io, iter, thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use thiserror::Error;
use virt::{
    connect::Connect,
    error::{Error, clear_error_callback},
};

use super::address::Address;

/// What a connection says of itself.
type Answer = Result<String, Error>;

/// How many answers a trial has at most: without the version, and with it.
const ANSWERS: usize = 2;

/// Why a connection cannot be opened.
#[derive(Debug, Error)]
pub enum TrialError {
    /// libvirt's words.
    #[error("{0}")]
    Refused(String),
    /// libvirt did not answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The trial cannot be made.
    #[error("cannot be tried: {0}")]
    Untried(io::Error),
}

/// Opens the connections at the same time. For each in its order, what answers: the driver, its version, and how many domains
/// it has. The version is left out if it does not come in time. A call that hangs is left behind in its thread.
#[must_use]
pub fn try_connections(uris: &[String], patience: Duration) -> Vec<Result<String, TrialError>> {
    // Errors are returned; libvirt would print each, too.
    clear_error_callback();
    let start = |uri: &String| {
        let (sender, receiver) = bounded(ANSWERS);
        let uri = uri.clone();
        let tried = move || {
            if let Err(error) = describe(&without_terminal(&uri), &sender) {
                // The receiver may have given up.
                let _ = sender.send(Err(error));
            }
        };
        thread::Builder::new().name("libvirt trial".to_owned()).spawn(tried).map(|_| receiver)
    };
    let started: Vec<_> = uris.iter().map(start).collect();
    let deadline = Instant::now() + patience;
    let answer = |receiver: io::Result<Receiver<Answer>>| {
        let last = last_before(deadline, &receiver.map_err(TrialError::Untried)?);
        let answer = last.ok_or(TrialError::Silent(patience))?;
        answer.map_err(|error| TrialError::Refused(error.message().trim().to_owned()))
    };
    started.into_iter().map(answer).collect()
}

/// The last answer that comes before the deadline, or before the sender ends.
fn last_before(deadline: Instant, receiver: &Receiver<Answer>) -> Option<Answer> {
    iter::from_fn(|| receiver.recv_deadline(deadline).ok()).last()
}

/// A service has no terminal on which ssh(1) could ask for a password.
fn without_terminal(uri: &str) -> String {
    let address = Address::of(uri);
    if address.is_local() || address.parameter("no_tty").is_some() {
        return uri.to_owned();
    }
    format!("{uri}{}no_tty=1", if uri.contains('?') { '&' } else { '?' })
}

/// Sends what answers, and then the same with the version of its hypervisor: libvirt may start each QEMU of the host to find
/// that version, which takes seconds.
fn describe(uri: &str, answers: &Sender<Answer>) -> Result<(), Error> {
    let connection = Connect::open_read_only(Some(uri))?;
    let driver = connection.driver_type()?;
    let domains = connection.list_all_domains(0)?.len();
    // The receiver may have given up.
    let _ = answers.send(Ok(format!("{driver} answers, domains: {domains}")));
    // A daemon of another host may have a driver without a version.
    if let Ok(it) = connection.hyp_version() {
        let version = format!("{}.{}.{}", it / 1_000_000, it / 1000 % 1000, it % 1000);
        let _ = answers.send(Ok(format!("{driver} {version} answers, domains: {domains}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn ssh_asks_for_nothing() {
        for (uri, tried) in [
            ("qemu:///system", "qemu:///system"),
            ("qemu+ssh://host/system", "qemu+ssh://host/system?no_tty=1"),
            ("qemu+ssh://host/system?keyfile=/k", "qemu+ssh://host/system?keyfile=/k&no_tty=1"),
            ("qemu+ssh://host/system?no_tty=0", "qemu+ssh://host/system?no_tty=0"),
        ] {
            assert_eq!(without_terminal(uri), tried);
        }
    }

    #[test]
    fn a_version_that_does_not_come_in_time_is_left_out() {
        let (sender, receiver) = bounded(ANSWERS);
        let deadline = Instant::now() + Duration::from_millis(50);
        sender.send(Ok("QEMU answers, domains: 1".to_owned())).unwrap();
        // The sender still waits for the version.
        let last = last_before(deadline, &receiver);
        assert_eq!(last.unwrap().unwrap(), "QEMU answers, domains: 1");
        sender.send(Ok("QEMU answers, domains: 2".to_owned())).unwrap();
        sender.send(Ok("QEMU 10.0.13 answers, domains: 2".to_owned())).unwrap();
        drop(sender);
        let last = last_before(Instant::now() + Duration::from_secs(60), &receiver);
        assert_eq!(last.unwrap().unwrap(), "QEMU 10.0.13 answers, domains: 2");
    }

    #[test]
    fn a_daemon_that_hangs_delays_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let [silent, stale] = ["silent", "stale"].map(|name| dir.path().join(name));
        // It accepts, and never answers.
        let _listener = UnixListener::bind(&silent).unwrap();
        drop(UnixListener::bind(&stale).unwrap());
        let uris = [
            format!("qemu:///system?socket={}", silent.display()),
            format!("qemu:///system?socket={}", stale.display()),
            "test:///default".to_owned(),
            "nothing:///system".to_owned(),
        ];
        let tried = try_connections(&uris, Duration::from_millis(500));
        let [silent, stale, test, unknown] = tried.as_slice() else { panic!("{tried:?}") };
        assert!(matches!(silent, Err(TrialError::Silent(_))), "{silent:?}");
        assert!(
            matches!(stale, Err(TrialError::Refused(said)) if said.contains("Connection refused")),
            "{stale:?}"
        );
        assert!(test.as_ref().unwrap().ends_with(" answers, domains: 1"), "{test:?}");
        assert!(matches!(unknown, Err(TrialError::Refused(_))), "{unknown:?}");
    }
}

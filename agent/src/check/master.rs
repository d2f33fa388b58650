//! The SNMP master, checked by connecting to it.

use std::{
    io,
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use super::Check;
use crate::{agentx::Address, unix_socket::connect_within};

/// Timeout for the connection.
const DEADLINE: Duration = Duration::from_secs(2);

pub(super) fn check(address: &Address) -> Check {
    assess(address, connect(address))
}

fn connect(address: &Address) -> io::Result<()> {
    match address {
        Address::Unix(path) => connect_within(path, DEADLINE).map(drop),
        Address::Tcp { host, port } => {
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in (host.as_str(), *port).to_socket_addrs()? {
                match TcpStream::connect_timeout(&address, DEADLINE) {
                    Ok(_) => return Ok(()),
                    Err(e) => last = e,
                }
            }
            Err(last)
        }
    }
}

fn assess(address: &Address, connected: io::Result<()>) -> Check {
    const NAME: &str = "AgentX master";
    let error = match connected {
        Ok(()) => return Check::ok(NAME, format!("{address} accepts")),
        Err(error) => error,
    };
    let unix = matches!(address, Address::Unix(_));
    let fix = match error.kind() {
        io::ErrorKind::NotFound if unix => {
            "start snmpd, with `master agentx` in its snmpd.conf, or set agentx.address to its agentXSocket"
                .to_owned()
        }
        io::ErrorKind::NotFound => "correct the host in agentx.address".to_owned(),
        io::ErrorKind::PermissionDenied if unix => {
            "run as root, or set `agentXPerms 0660 0750 root kvmeter` in snmpd.conf and restart snmpd"
                .to_owned()
        }
        io::ErrorKind::ConnectionRefused if unix => {
            "no process listens there: start snmpd, and look for `master agentx` in snmpd.conf".to_owned()
        }
        io::ErrorKind::ConnectionRefused => format!(
            "no process listens there: add `master agentx` and `agentXSocket {address}` to snmpd.conf and restart snmpd"
        ),
        io::ErrorKind::TimedOut => "the master does not accept: restart snmpd".to_owned(),
        _ => "correct agentx.address, and check whether snmpd runs".to_owned(),
    };
    Check::fail(NAME, format!("{address}: {error}"), fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use std::{net::TcpListener, os::unix::net::UnixListener};

    fn fix(check: Check) -> String {
        match check.verdict {
            Verdict::Fail(fix) => fix,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_unix_socket_is_absent_refuses_or_accepts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("master");
        let address = Address::Unix(path.clone());
        assert!(fix(check(&address)).starts_with("start snmpd, with `master agentx`"));
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(check(&address).verdict, Verdict::Ok);
        drop(listener);
        assert!(fix(check(&address)).starts_with("no process listens there: start snmpd"));
    }

    #[test]
    fn a_tcp_port_accepts_or_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let address = Address::Tcp { host: "127.0.0.1".into(), port };
        assert_eq!(check(&address).verdict, Verdict::Ok);
        drop(listener);
        assert!(fix(check(&address)).contains(&format!("`agentXSocket tcp:127.0.0.1:{port}`")));
    }

    #[test]
    fn each_error_has_its_fix() {
        let unix = Address::Unix("/var/agentx/master".into());
        let tcp = Address::Tcp { host: "snmp".into(), port: 705 };
        for (address, kind, begin) in [
            (&unix, io::ErrorKind::PermissionDenied, "run as root, or set `agentXPerms"),
            (&unix, io::ErrorKind::TimedOut, "the master does not accept: restart snmpd"),
            (&tcp, io::ErrorKind::NotFound, "correct the host in agentx.address"),
            (&tcp, io::ErrorKind::HostUnreachable, "correct agentx.address"),
        ] {
            let fix = fix(assess(address, Err(kind.into())));
            assert!(fix.starts_with(begin), "{fix}");
        }
    }
}

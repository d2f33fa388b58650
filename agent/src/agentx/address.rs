//! Where the master listens (RFC 2741 section 8).

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// The address of a master.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `unix:PATH`, a stream socket.
    Unix(PathBuf),
    /// `tcp:HOST:PORT`; an IPv6 address stands in brackets.
    Tcp {
        /// A name or an address.
        host: String,
        /// RFC 2741 section 8.1.1 gives 705.
        port: u16,
    },
}

/// Why text is no address of a master.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum AddressError {
    /// Neither of the two kinds.
    #[error("The AgentX address \"{0}\" is neither unix:/PATH nor tcp:HOST:PORT")]
    Kind(String),
    /// A relative path means another file for each working directory.
    #[error(
        "The path in the AgentX address \"{0}\" must begin with \"/\", as in unix:/var/agentx/master"
    )]
    Path(String),
    /// Nothing before the port.
    #[error(
        "The AgentX address \"{0}\" has no host; write tcp:HOST:PORT, and an IPv6 address in brackets"
    )]
    Host(String),
    /// No port, or none that there is.
    #[error(
        "The AgentX address \"{0}\" must end with a port from 1 to 65535, as in tcp:localhost:705"
    )]
    Port(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(AddressError::Path(text.to_owned()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let Some(rest) = text.strip_prefix("tcp:") else {
            return Err(AddressError::Kind(text.to_owned()));
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(AddressError::Port(text.to_owned()));
        };
        let host = match host.strip_prefix('[').map(|inner| inner.strip_suffix(']')) {
            Some(Some(inner)) => inner,
            None if !host.contains(':') => host,
            _ => return Err(AddressError::Host(text.to_owned())),
        };
        if host.is_empty() {
            return Err(AddressError::Host(text.to_owned()));
        }
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(AddressError::Port(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_written_as_it_is_read() {
        for text in
            ["unix:/var/agentx/master", "tcp:localhost:705", "tcp:[::1]:1", "tcp:127.0.0.1:65535"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let check = |text: &str, expected: fn(String) -> AddressError| {
            assert_eq!(text.parse::<Address>(), Err(expected(text.to_owned())));
        };
        check("", AddressError::Kind);
        check("/var/agentx/master", AddressError::Kind);
        check("udp:localhost:705", AddressError::Kind);
        check("unix:", AddressError::Path);
        check("unix:master", AddressError::Path);
        check("tcp:localhost", AddressError::Port);
        check("tcp:localhost:", AddressError::Port);
        check("tcp:localhost:0", AddressError::Port);
        check("tcp:localhost:65536", AddressError::Port);
        check("tcp::705", AddressError::Host);
        check("tcp:::1:705", AddressError::Host);
        check("tcp:[::1:705", AddressError::Host);
        check("tcp:[]:705", AddressError::Host);
    }
}

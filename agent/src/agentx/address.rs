//! Address of the master (RFC 2741 section 8).

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// The address at which a master listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// `unix:/PATH`
    Unix(PathBuf),
    /// `tcp:HOST:PORT`, with an IPv6 address in brackets.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// 1 to 65,535.
        port: u16,
    },
}

/// The text is no [`Address`].
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("An AgentX address is unix:/PATH or tcp:HOST:PORT, with an IPv6 address in brackets")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix:") {
            let named = path.len() > 1 && path.len() <= 107 && !path.contains('\0');
            return if path.starts_with('/') && named {
                Ok(Self::Unix(PathBuf::from(path)))
            } else {
                Err(AddressError)
            };
        }
        let (host, port) =
            text.strip_prefix("tcp:").and_then(|rest| rest.rsplit_once(':')).ok_or(AddressError)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(v6) if v6.parse::<std::net::Ipv6Addr>().is_ok() => v6,
            None if host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c)) => host,
            _ => return Err(AddressError),
        };
        match port.parse() {
            Ok(port @ 1..) if !host.is_empty() => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(AddressError),
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
    fn an_address_prints_as_it_was_parsed() {
        for text in [
            "unix:/var/agentx/master",
            "tcp:localhost:705",
            "tcp:127.0.0.1:1",
            "tcp:[::1]:65535",
            "tcp:snmp-1.example.net:705",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_addresses_are_refused() {
        for text in [
            "",
            "unix:",
            "unix:/",
            "unix:var/agentx/master",
            "/var/agentx/master",
            "tcp:localhost",
            "tcp::705",
            "tcp:localhost:0",
            "tcp:localhost:65536",
            "tcp:localhost:705 ",
            "tcp:::1:705",
            "tcp:[::1:705",
            "tcp:[]:705",
            "tcp:[localhost]:705",
            "udp:localhost:705",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert_eq!(long.parse::<Address>(), Err(AddressError));
    }
}

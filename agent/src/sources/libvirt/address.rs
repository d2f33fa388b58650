//! The parts of a libvirt URI (<https://libvirt.org/uri.html>).

/// `driver[+transport]://[host]/path[?parameters]`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Address<'a> {
    pub(super) driver: &'a str,
    transport: &'a str,
    host: &'a str,
    pub(super) path: &'a str,
    parameters: &'a str,
}

impl<'a> Address<'a> {
    /// Takes a URI apart. What is missing is empty.
    pub(super) fn of(uri: &'a str) -> Self {
        let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
        let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
        let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { driver, transport, host, path, parameters }
    }

    /// Whether the daemon runs on this host.
    pub(super) fn is_local(&self) -> bool {
        self.host.is_empty() && matches!(self.transport, "" | "unix")
    }

    /// The value of a parameter.
    pub(super) fn parameter(&self, name: &str) -> Option<&'a str> {
        let mut parameters = self.parameters.split('&');
        parameters.find_map(|parameter| parameter.strip_prefix(name)?.strip_prefix('='))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_a_uri() {
        let address = Address::of("qemu+unix:///system?no_tty=1&socket=/run/sock");
        assert_eq!((address.driver, address.path), ("qemu", "/system"));
        assert_eq!(
            (address.parameter("socket"), address.parameter("sock")),
            (Some("/run/sock"), None)
        );
        for (uri, is_local) in [
            ("qemu:///system", true),
            ("qemu:///session?socket=/x", true),
            ("test:///default", true),
            ("qemu+ssh://root@host/system", false),
            ("qemu+ssh:///system", false),
            ("qemu://host/system", false),
            ("qemu+tls://host:16514/system", false),
        ] {
            assert_eq!(Address::of(uri).is_local(), is_local, "{uri}");
        }
        assert_eq!(Address::of("").path, "");
    }
}

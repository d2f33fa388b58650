//! Where the data of a disk is, as it may be published: of what a network reaches the scheme, host, port and path, without
//! user names, passwords, keys and parameters. Accepts any text, and leaves out what it cannot tell from a credential.

/// The protocols of QEMU's file names behind which a path follows.
pub(crate) const LOCAL: [&str; 3] = ["file", "host_device", "host_cdrom"];

/// Where the data of a disk is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    /// Path of a file or device.
    Local(String),
    /// A service that a network, or a socket, leads to.
    Network(Address),
    /// Neither a file nor a service, such as memory or a device of the PCI bus.
    Other(Address),
}

/// A protocol, and what it leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Address {
    /// Name of the protocol as libvirt has it: `nbd` for `nbd+unix`.
    pub(crate) protocol: String,
    /// Without credentials.
    pub(crate) text: String,
}

impl Location {
    /// The location that a file name of QEMU stands for (`path_has_protocol()` of its `block.c`).
    pub(crate) fn of_name(name: &str) -> Self {
        let mut name = name;
        // Each round takes a prefix away.
        loop {
            let Some((scheme, rest)) = split_scheme(name) else {
                return Self::Local(name.to_owned());
            };
            match scheme {
                scheme
                    if LOCAL.contains(&scheme)
                        && (!rest.starts_with("//") || rest.starts_with("///")) =>
                {
                    return Self::of_path(rest);
                }
                // blkdebug:CONFIGURATION:IMAGE, blkverify:COPY:IMAGE
                "blkdebug" | "blkverify" => {
                    let Some((_, image)) = rest.split_once(':') else {
                        return Self::Other(Address::new(scheme, format!("{scheme}:")));
                    };
                    name = image;
                }
                // fat:floppy:rw:DIRECTORY
                "fat" => {
                    let directory = rest.rsplit(':').next().unwrap_or_default();
                    return Self::Other(Address::new(scheme, format!("fat:{}", bare(directory))));
                }
                // JSON may contain credentials and is not parsed here.
                "json" => return Self::Other(Address::new(scheme, "json:".to_owned())),
                "rbd" => {
                    let text = format!("rbd:{}", until_unescaped_colon(rest));
                    return Self::Network(Address::new(scheme, text));
                }
                "nbd" if !rest.starts_with("//") => return Self::Network(nbd_name(rest)),
                "null-co" | "null-aio" | "nvme" => {
                    return Self::Other(Address::new(scheme, format!("{scheme}:{}", bare(rest))));
                }
                _ if rest.starts_with("//") => return Self::Network(url(scheme, &rest[2..])),
                "sheepdog" => {
                    let text = format!("{scheme}:{}", bare(rest));
                    return Self::Network(Address::new(scheme, text));
                }
                // Unknown: what follows may be anything.
                _ => return Self::Other(Address::new(scheme, format!("{scheme}:"))),
            }
        }
    }

    /// The location of a path that is not parsed for a protocol. A path in use has no `://`; text with one is a mistake,
    /// and may contain credentials.
    pub(crate) fn of_path(path: &str) -> Self {
        if path.contains("://") || path.starts_with("json:") {
            return Self::of_name(path);
        }
        Self::Local(path.to_owned())
    }

    /// The location of an image of a service, in the form that libvirt's disks have: `rbd:pool/image@host:6789,host`.
    /// `hosts` are names, names with a port, or paths of sockets.
    pub(crate) fn of_service(protocol: &str, name: &str, hosts: &[String]) -> Self {
        let name = match protocol {
            "rbd" => until_unescaped_colon(name),
            _ => until(name, &['?', '#']).to_owned(),
        };
        let hosts: Vec<String> =
            hosts.iter().map(|of| host(of)).filter(|of| !of.is_empty()).collect();
        let at = if hosts.is_empty() { String::new() } else { format!("@{}", hosts.join(",")) };
        Self::Network(Address::new(protocol, format!("{protocol}:{name}{at}")))
    }

    /// The protocol; `None`: a file or device.
    pub(crate) fn protocol(&self) -> Option<&str> {
        match self {
            Self::Local(_) => None,
            Self::Network(address) | Self::Other(address) => Some(&address.protocol),
        }
    }

    /// What may be published.
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Local(path) => path,
            Self::Network(address) | Self::Other(address) => address.text,
        }
    }
}

impl Address {
    /// An address whose `text` has no credential.
    pub(crate) fn new(scheme: &str, text: String) -> Self {
        // nbd+unix, gluster+tcp; iser is iSCSI over RDMA.
        let protocol = match scheme.split('+').next().unwrap_or(scheme) {
            "iser" => "iscsi",
            protocol => protocol,
        };
        Self { protocol: protocol.to_owned(), text }
    }
}

/// Splits a name with a colon before the first slash, as `path_has_protocol()` of QEMU's `block.c` finds it.
pub(crate) fn split_scheme(name: &str) -> Option<(&str, &str)> {
    let at = name.find([':', '/'])?;
    let (scheme, rest) = name.split_at(at);
    rest.strip_prefix(':').map(|rest| (scheme, rest))
}

fn until<'a>(text: &'a str, ends: &[char]) -> &'a str {
    text.split(ends).next().unwrap_or_default()
}

/// The text without what may be a user name, a parameter or a fragment.
fn bare(text: &str) -> &str {
    until(text.rsplit('@').next().unwrap_or_default(), &['?', '#'])
}

/// `pool/image` of rbd: options follow a colon. A backslash escapes the character behind it.
fn until_unescaped_colon(text: &str) -> String {
    let mut name = String::new();
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match char {
            ':' => break,
            '\\' => name.extend(chars.next()),
            char => name.push(char),
        }
    }
    name
}

/// The address of what follows `nbd:`, in the form without slashes: `unix:PATH:exportname=X`, `HOST:PORT:exportname=X`.
fn nbd_name(rest: &str) -> Address {
    let (server, export) = rest.split_once(":exportname=").unwrap_or((rest, ""));
    let server = match server.strip_prefix("unix:") {
        Some(path) => until(path, &['?', '#']).to_owned(),
        None => host(server),
    };
    Address::new("nbd", format!("nbd:{}@{server}", until(export, &['?', '#'])))
}

/// The address of a URL, given without its scheme and slashes.
fn url(scheme: &str, rest: &str) -> Address {
    // A password may contain a slash for a client of iSCSI, and by mistake for any: `user:1/2@host`.
    let authority = until(rest, &['/', '?', '#']);
    let is_iscsi = matches!(scheme, "iscsi" | "iser");
    let ends_at_slash = rest[authority.len()..].starts_with('/');
    let is_plain = ends_at_slash && !is_iscsi && !authority.contains([':', '%', '@']);
    let user_end = if is_plain { None } else { rest.rfind('@') };
    let rest = match user_end {
        Some(at) if is_unclear(authority, rest, at) => "",
        Some(at) => &rest[at + 1..],
        None => rest,
    };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = until(path, &['#']);
    if scheme.ends_with("+unix") {
        let parameters = query.split(['&', ';']);
        let socket = parameters.filter_map(|one| one.strip_prefix("socket=")).next();
        let socket = until(socket.unwrap_or_default(), &['?', '#', '@']);
        let protocol = scheme.trim_end_matches("+unix");
        let name = path.trim_start_matches('/');
        return Address::new(scheme, format!("{protocol}:{name}@{}", socket.replace("%2F", "/")));
    }
    let authority = until(path, &['/']);
    let path = &path[authority.len()..];
    Address::new(scheme, format!("{scheme}://{}{path}", host(authority)))
}

/// Whether the `@` at this place may be one of the path or of the query as well as the end of a password: nothing of the
/// text is published then.
fn is_unclear(authority: &str, rest: &str, at: usize) -> bool {
    let port = authority.rsplit_once(':').map(|(_, port)| port);
    let has_port = port.is_some_and(|port| port.bytes().all(|byte| byte.is_ascii_digit()));
    rest[..at].contains(['?', '#']) || (has_port && at > authority.len())
}

/// A host without a user in front of it, and without a password behind it. An IPv6 address keeps its zone.
fn host(text: &str) -> String {
    let text = text.rsplit('@').next().unwrap_or_default();
    let text = until(text, &['?', '#']);
    match text.find(['%', ']']) {
        Some(at) if text[at..].starts_with('%') && !text.starts_with('[') => text[..at].to_owned(),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn of_a_service_its_place_is_published_and_no_credential() {
        for (name, protocol, text) in [
            (
                "rbd:pool/vm-1:id=admin:key=AQBsecret==:auth_supported=cephx:mon_host=10.0.0.1",
                "rbd",
                "rbd:pool/vm-1",
            ),
            ("rbd:pool/ns/vm-1@snap:id=a", "rbd", "rbd:pool/ns/vm-1@snap"),
            (r"rbd:pool/a\:b:key=secret", "rbd", "rbd:pool/a:b"),
            (
                "iscsi://chap%secret@10.0.0.2/iqn.2020-01.x:t/1",
                "iscsi",
                "iscsi://10.0.0.2/iqn.2020-01.x:t/1",
            ),
            (
                "iscsi://chap%se/cret@10.0.0.2:3260/iqn.x/1?x=secret",
                "iscsi",
                "iscsi://10.0.0.2:3260/iqn.x/1",
            ),
            ("iser://chap:secret@h/iqn.x/1", "iscsi", "iser://h/iqn.x/1"),
            ("https://user:secret@host/image.qcow2", "https", "https://host/image.qcow2"),
            (
                "https://user:sec@ret@host:8443/a?token=secret#secret",
                "https",
                "https://host:8443/a",
            ),
            ("https://user:sec/ret@host/a", "https", "https://host/a"),
            ("https://user:sec?ret@host/a", "https", "https://"),
            ("https://user:sec#ret@host/a", "https", "https://"),
            ("http://user:1?secret@host/a", "http", "http://"),
            ("http://user:1/secret@host/a", "http", "http://"),
            ("https://h:443/a?user=bob@x&token=secret", "https", "https://"),
            ("https://u:pw@h/a?sig=x@secret", "https", "https://"),
            ("https://h?t=a@secret", "https", "https://"),
            ("https://h:8443/img/a@b.qcow2", "https", "https://"),
            ("https://h:8443/a?token=secret", "https", "https://h:8443/a"),
            ("nbd://h:10809/vm", "nbd", "nbd://h:10809/vm"),
            ("https://host/dir@x/a", "https", "https://host/dir@x/a"),
            ("https://[fe80::1%25eth0]:443/a", "https", "https://[fe80::1%25eth0]:443/a"),
            ("ftp://u:secret@h", "ftp", "ftp://h"),
            ("ssh://user@host:22/i/a?host_key_check=no", "ssh", "ssh://host:22/i/a"),
            ("gluster+tcp://h:24007/vol/a?debug=1", "gluster", "gluster+tcp://h:24007/vol/a"),
            ("gluster+unix:///vol/a?socket=/run/g.sock", "gluster", "gluster:vol/a@/run/g.sock"),
            ("nbd+unix:///x?socket=/run/n.sock", "nbd", "nbd:x@/run/n.sock"),
            ("nbd:unix:/run/n.sock:exportname=x", "nbd", "nbd:x@/run/n.sock"),
            ("nbd:host:10809:exportname=x", "nbd", "nbd:x@host:10809"),
            ("nbd:[::1]:10809", "nbd", "nbd:@[::1]:10809"),
            ("nbd://user:secret@host/x", "nbd", "nbd://host/x"),
            ("nfs://host/export/a?uid=0", "nfs", "nfs://host/export/a"),
            ("sheepdog:host:7000:vdi", "sheepdog", "sheepdog:host:7000:vdi"),
            ("blkdebug:/c:https://u:secret@h/a", "https", "https://h/a"),
            ("vxhs://u:secret@h:9999/id", "vxhs", "vxhs://h:9999/id"),
        ] {
            let found = Location::of_name(name);
            assert!(matches!(found, Location::Network(_)), "{name}");
            assert_eq!(found.protocol(), Some(protocol), "{name}");
            assert_eq!(found.into_text(), text, "{name}");
        }
    }

    #[test]
    fn what_is_neither_a_file_nor_known_shows_its_kind_only() {
        for (name, text) in [
            ("json:{\"key\":\"secret\"}", "json:"),
            ("vault:user%secret@host", "vault:"),
            ("fat:rw:/i/dir", "fat:/i/dir"),
            ("null-co://", "null-co://"),
            ("nvme://0000:01:00.0/1", "nvme://0000:01:00.0/1"),
        ] {
            let found = Location::of_name(name);
            assert!(matches!(found, Location::Other(_)), "{name}");
            assert_eq!(found.into_text(), text, "{name}");
        }
    }

    #[test]
    fn a_path_is_a_path() {
        for (name, path) in [
            ("/i/a:b@c?d", "/i/a:b@c?d"),
            ("./a:b", "./a:b"),
            ("a.img", "a.img"),
            ("file:/i/a", "/i/a"),
            ("file:///i/a", "///i/a"),
            ("host_device:/dev/a", "/dev/a"),
        ] {
            assert_eq!(Location::of_name(name), Location::Local(path.to_owned()));
        }
        assert_eq!(Location::of_path("a:b.img"), Location::Local("a:b.img".to_owned()));
        assert_eq!(Location::of_path("https://u:secret@h/a").into_text(), "https://h/a");
        assert_eq!(Location::of_name("file:https://u:secret@h/a").into_text(), "https://h/a");
    }

    #[test]
    fn an_image_of_a_service_is_named_as_libvirt_does() {
        let of = |protocol, name, hosts: &[&str]| {
            let hosts: Vec<String> = hosts.iter().map(|of| (*of).to_owned()).collect();
            Location::of_service(protocol, name, &hosts).into_text()
        };
        assert_eq!(of("rbd", "pool/a:key=secret", &[]), "rbd:pool/a");
        assert_eq!(of("rbd", "pool/a", &["m1:6789", "m2"]), "rbd:pool/a@m1:6789,m2");
        assert_eq!(of("https", "/a?token=secret", &["u:secret@h:443"]), "https:/a@h:443");
        assert_eq!(of("iscsi", "iqn.x:t/1", &["u%secret@h"]), "iscsi:iqn.x:t/1@h");
        assert_eq!(of("nbd", "x", &["/run/n.sock"]), "nbd:x@/run/n.sock");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_name_panics(name in ".{0,60}") {
            let _ = (Location::of_name(&name), Location::of_path(&name));
        }

        #[test]
        fn no_token_of_a_query_is_published(
            scheme in "(https|ssh|iscsi|gluster\\+tcp|nbd|ftp|foo)",
            user in "([a-z]{1,4}(:[a-z0-9]{1,4})?@)?",
            port in "(:[0-9]{1,4})?",
            path in "(/[a-z@%:]{0,4}){0,2}",
            before in "[a-z0-9@/?#:%=&]{0,6}",
            after in "[a-z0-9@/?#:%=&]{0,6}",
        ) {
            let name = format!("{scheme}://{user}host{port}{path}?{before}SECRET{after}");
            let text = Location::of_name(&name).into_text();
            prop_assert!(!text.contains("SECRET"), "{name}: {text}");
        }

        #[test]
        fn no_password_is_published(
            scheme in "(https|ssh|iscsi|gluster\\+tcp|nbd|ftp|foo)",
            user in "[a-z]{0,4}",
            between in "[:%]",
            before in "[a-z0-9@/?#:%é]{0,4}",
            after in "[a-z0-9@/?#:%é]{0,4}",
        ) {
            let name = format!("{scheme}://{user}{between}{before}SECRET{after}@host/path");
            let text = Location::of_name(&name).into_text();
            prop_assert!(!text.contains("SECRET"), "{name}: {text}");
            let is_left_out = text == format!("{scheme}://");
            prop_assert!(is_left_out || text.ends_with("host/path"), "{name}: {text}");
        }
    }
}

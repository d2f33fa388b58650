//! The host's network interfaces as rtnetlink(7) lists and reports them. Accepts any bytes.

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink::SocketAddrNetlink,
        recv, sendto, socket_with,
    },
};

/// Types of messages (linux/netlink.h, linux/rtnetlink.h).
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const GET_LINK: u16 = 18;

/// NLM_F_REQUEST and NLM_F_DUMP of a request, and NLM_F_DUMP_INTR of an answer: the list has changed while it was read.
const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const INTERRUPTED: u16 = 0x10;

/// Lengths of nlmsghdr and ifinfomsg.
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;

/// Attributes (linux/if_link.h), without the flags in their upper bits.
const IF_NAME: u16 = 3;
const LINK: u16 = 5;
const MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const TUN_OWNER: u16 = 1;
const EXTENDED_MASK: u16 = 29;
const LINK_NAMESPACE: u16 = 37;
const ATTRIBUTE_TYPE: u16 = 0x3fff;

/// RTEXT_FILTER_SKIP_STATS: counters, which are half of the list.
const SKIP_STATISTICS: u32 = 1 << 3;

/// A datagram of a list has at most 32 KiB (netlink_dump() in net/netlink/af_netlink.c).
pub(super) const BUFFER: usize = 64 * 1024;

/// How often a list that changes while it is read is read again.
const TRIES: usize = 4;

/// An interface.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Link {
    pub(super) index: u32,
    pub(super) name: String,
    /// The kernel's name of its kind, such as `tun`; empty for most hardware.
    pub(super) kind: String,
    /// The bridge or the like of which it is a port.
    pub(super) master: Option<u32>,
    /// The interface below it, or the other end of a pair, if that is in the same network namespace.
    pub(super) lower: Option<u32>,
    /// The user to whom a tap was given (`TUNSETOWNER`): no other user can open it.
    pub(super) owner: Option<u32>,
}

/// What a message says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Message {
    /// An interface is like this.
    Is(Link),
    /// It is gone from this network namespace.
    Gone(Link),
    /// The list ends here.
    End,
    /// The kernel has not made the list.
    Failed,
    /// The list has changed meanwhile.
    Interrupted,
}

/// All interfaces of this network namespace.
pub(super) fn list() -> Result<Vec<Link>, Errno> {
    let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let mut buffer = vec![0; BUFFER];
    for _ in 0..TRIES {
        sendto(&socket, &request(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let (mut links, mut is_whole, mut is_at_end) = (Vec::new(), true, false);
        while !is_at_end {
            let len = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
                Err(Errno::INTR) => continue,
                received => received?.0,
            };
            for message in messages(buffer.get(..len).unwrap_or(&buffer)) {
                match message {
                    Message::Is(link) => links.push(link),
                    Message::Gone(_) => {}
                    Message::Interrupted => is_whole = false,
                    Message::End => is_at_end = true,
                    Message::Failed => return Err(Errno::IO),
                }
            }
        }
        if is_whole {
            return Ok(links);
        }
    }
    Err(Errno::AGAIN)
}

/// RTM_GETLINK for all interfaces, without their counters.
#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
fn request() -> Vec<u8> {
    let mut request = Vec::with_capacity(MESSAGE_HEADER + LINK_HEADER + 8);
    request.extend(40_u32.to_ne_bytes());
    request.extend(GET_LINK.to_ne_bytes());
    request.extend((REQUEST | DUMP).to_ne_bytes());
    // Sequence and port.
    request.extend([0; 8]);
    request.extend([0; LINK_HEADER]);
    request.extend(8_u16.to_ne_bytes());
    request.extend(EXTENDED_MASK.to_ne_bytes());
    request.extend(SKIP_STATISTICS.to_ne_bytes());
    request
}

/// The messages of a datagram that are about interfaces or end a list.
pub(super) fn messages(mut datagram: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    while let (Some(len), Some(kind), Some(flags)) =
        (word(datagram, 0), half(datagram, 4), half(datagram, 6))
    {
        let len = len as usize;
        let Some(message) = datagram.get(MESSAGE_HEADER..len) else { break };
        if flags & INTERRUPTED != 0 {
            found.push(Message::Interrupted);
        }
        match kind {
            NEW_LINK => found.extend(link(message).map(Message::Is)),
            DEL_LINK => found.extend(link(message).map(Message::Gone)),
            DONE => found.push(Message::End),
            ERROR => found.push(Message::Failed),
            _ => {}
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    found
}

/// An interface: ifinfomsg and its attributes. `None`: no such message, or one of a bridge about its port, which is not
/// gone when the bridge says so.
fn link(message: &[u8]) -> Option<Link> {
    // AF_UNSPEC
    if *message.first()? != 0 {
        return None;
    }
    let mut link = Link { index: word(message, 4)?, ..Link::default() };
    let mut is_elsewhere = false;
    for (kind, value) in attributes(message.get(LINK_HEADER..)?) {
        match kind {
            IF_NAME => link.name = text(value)?,
            LINK => link.lower = word(value, 0).filter(|index| *index != 0),
            LINK_NAMESPACE => is_elsewhere = true,
            MASTER => link.master = word(value, 0).filter(|index| *index != 0),
            LINK_INFO => {
                let part = |of| attributes(value).find(|(kind, _)| *kind == of);
                link.kind = part(INFO_KIND).and_then(|(_, kind)| text(kind)).unwrap_or_default();
                // Other kinds have other attributes.
                link.owner = part(INFO_DATA)
                    .filter(|_| link.kind == "tun")
                    .and_then(|(_, data)| attributes(data).find(|(kind, _)| *kind == TUN_OWNER))
                    .and_then(|(_, owner)| word(owner, 0));
            }
            _ => {}
        }
    }
    if is_elsewhere || link.lower == Some(link.index) {
        link.lower = None;
    }
    (!link.name.is_empty()).then_some(link)
}

/// Attributes: length, type, value, filled up to four bytes.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (len, kind) = (usize::from(half(bytes, 0)?), half(bytes, 2)?);
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind & ATTRIBUTE_TYPE, value))
    })
}

fn text(value: &[u8]) -> Option<String> {
    let text = value.split(|&byte| byte == 0).next()?;
    String::from_utf8(text.to_vec()).ok()
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(4 + value.len()).unwrap();
        let mut bytes = [len.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, family: u8, index: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = vec![0; MESSAGE_HEADER + LINK_HEADER];
        bytes.extend(attributes.concat());
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[16] = family;
        bytes[20..24].copy_from_slice(&index.to_ne_bytes());
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = messages(&bytes);
        }

        #[test]
        fn no_attributes_panic(
            kind in prop::sample::select(vec![IF_NAME, LINK, MASTER, LINK_INFO, LINK_NAMESPACE]),
            value in prop::collection::vec(any::<u8>(), 0..30),
        ) {
            let _ = messages(&message(NEW_LINK, 0, 7, &[attribute(kind, &value)]));
        }
    }

    #[test]
    fn a_message_describes_an_interface() {
        let veth = attribute(0x8000 | LINK_INFO, &attribute(INFO_KIND, b"veth\0"));
        let number = |of: u16, number: u32| attribute(of, &number.to_ne_bytes());
        let name = attribute(IF_NAME, b"vnet7\0");
        let parts = [attribute(1, &[9; 6]), name.clone(), number(LINK, 4), number(MASTER, 5), veth];
        let expected = Link {
            index: 7,
            name: "vnet7".to_owned(),
            kind: "veth".to_owned(),
            master: Some(5),
            lower: Some(4),
            owner: None,
        };
        let is = message(NEW_LINK, 0, 7, &parts);
        let gone = message(DEL_LINK, 0, 7, &parts);
        assert_eq!(
            messages(&[&is[..], &gone].concat()),
            [Message::Is(expected.clone()), Message::Gone(expected.clone())]
        );
        assert!(messages(&is[..60]).is_empty(), "it is cut");
        // The number of the other end is another namespace's.
        let elsewhere = [&parts[..], &[number(LINK_NAMESPACE, 0)]].concat();
        let expected = Link { lower: None, ..expected };
        assert_eq!(messages(&message(NEW_LINK, 0, 7, &elsewhere)), [Message::Is(expected)]);
        // A bridge (AF_BRIDGE) says that it has lost a port.
        assert!(messages(&message(DEL_LINK, 7, 7, &[name])).is_empty());
    }

    #[test]
    fn a_tap_has_the_user_to_whom_it_was_given() {
        let name = attribute(IF_NAME, b"tap0\0");
        let owner = |kind: &[u8], data: &[u8]| {
            let info = [attribute(INFO_KIND, kind), attribute(INFO_DATA, data)].concat();
            let is = message(NEW_LINK, 0, 7, &[name.clone(), attribute(LINK_INFO, &info)]);
            match &messages(&is)[..] {
                [Message::Is(link)] => link.owner,
                other => panic!("{other:?}"),
            }
        };
        let given = [attribute(3, &[1]), attribute(TUN_OWNER, &1001_u32.to_ne_bytes())].concat();
        assert_eq!(owner(b"tun\0", &given), Some(1001));
        assert_eq!(owner(b"tun\0", &attribute(3, &[1])), None);
        assert_eq!(owner(b"vlan\0", &given), None);
    }

    #[test]
    fn the_kernel_lists_the_loopback_interface() {
        let links = list().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((loopback.index, loopback.lower, loopback.master), (1, None, None));
    }
}

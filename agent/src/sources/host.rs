//! The host's network interfaces as IF-MIB numbers them, from sysfs. net-snmp's ifIndex is the kernel's own
//! (agent/mibgroup/if-mib/data_access/interface_linux.c). A netlink socket says which interface has changed
//! (rtnetlink(7)), so that nothing is read again for an event of a VM.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink, recv,
        socket_with,
    },
};
use tracing::warn;

use super::timespec;
use crate::{
    inventory::{Fact, NicNumbers},
    worker::Facts,
};

/// Where the kernel shows its interfaces.
const SYSFS: &str = "/sys/class/net";

/// RTMGRP_LINK (linux/rtnetlink.h): interfaces that come, go and change.
const LINK_GROUP: u32 = 1;

/// RTM_NEWLINK and RTM_DELLINK, the lengths of nlmsghdr and ifinfomsg, and IFLA_IFNAME (linux/netlink.h, linux/rtnetlink.h,
/// linux/if_link.h).
const NEW_LINK: u16 = 16;
const DEL_LINK: u16 = 17;
const MESSAGE_HEADER: usize = 16;
const LINK_HEADER: usize = 16;
const IF_NAME: u16 = 3;

/// A change of an interface that others may lie on has all read again, but not more often than this.
const SCAN_PAUSE: Duration = Duration::from_secs(1);

/// The longest chain of interfaces upon interfaces that is followed.
const MAX_DEPTH: usize = 8;

/// Reports the numbers of all interfaces, and from then on those that change, on a thread that lives as long as the
/// process.
///
/// # Errors
///
/// Those of the netlink socket or the thread. What was reported stays as it is then.
pub fn start(facts: Facts) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUP))?;
    let mut links = Links { facts, known: HashMap::new() };
    links.scan();
    std::thread::Builder::new()
        .name("host nics".to_owned())
        .spawn(move || links.follow(&socket))?;
    Ok(())
}

/// What was reported of each interface.
struct Links {
    facts: Facts,
    known: HashMap<String, NicNumbers>,
}

impl Links {
    fn follow(mut self, socket: &OwnedFd) {
        let _end = self.facts.end_guard("host nics");
        let (mut scanned, mut scan_due) = (Instant::now(), None::<Instant>);
        loop {
            let limit = scan_due.map(|due| due.saturating_duration_since(Instant::now()));
            let changed = match wait(socket, limit).and_then(|()| changed(socket)) {
                Ok(changed) => changed,
                // More changes than the socket's buffer holds.
                Err(Errno::NOBUFS) => Changed::All,
                Err(error) => {
                    warn!("Cannot follow the host's interfaces: {error}; their numbers stay");
                    return;
                }
            };
            let all = match changed {
                Changed::All => true,
                Changed::These(names) => {
                    // Nothing lies on a tap.
                    let is_tap = |name: &String| {
                        let dir = Path::new(SYSFS).join(name);
                        is_name(name) && (dir.join("tun_flags").exists() || !dir.exists())
                    };
                    let (taps, others): (Vec<_>, Vec<_>) = names.into_iter().partition(is_tap);
                    let mut nics = HostNics::default();
                    for name in taps {
                        self.report(&mut nics, &name);
                    }
                    !others.is_empty()
                }
            };
            if all {
                scan_due.get_or_insert(scanned + SCAN_PAUSE);
            }
            if scan_due.is_some_and(|due| due <= Instant::now()) {
                self.scan();
                (scanned, scan_due) = (Instant::now(), None);
            }
        }
    }

    /// Reports all interfaces that differ from what was reported.
    fn scan(&mut self) {
        let names: BTreeSet<String> = names(Path::new(SYSFS)).into_iter().collect();
        let gone: Vec<_> =
            self.known.keys().filter(|name| !names.contains(*name)).cloned().collect();
        let mut nics = HostNics::default();
        for name in names.into_iter().chain(gone) {
            self.report(&mut nics, &name);
        }
    }

    fn report(&mut self, nics: &mut HostNics, name: &str) {
        let (if_index, parent_if_index) = nics.if_indexes(name);
        let numbers = (if_index != 0).then_some(NicNumbers { if_index, parent_if_index });
        let before = match numbers {
            Some(numbers) => self.known.insert(name.to_owned(), numbers),
            None => self.known.remove(name),
        };
        if before != numbers {
            self.facts.send(Fact::HostNic(name.to_owned(), numbers));
        }
    }
}

/// The interfaces that messages are about.
#[derive(Debug, Eq, PartialEq)]
enum Changed {
    These(BTreeSet<String>),
    /// More than the messages say.
    All,
}

fn wait(socket: &OwnedFd, limit: Option<Duration>) -> Result<(), Errno> {
    let limit = limit.map(timespec);
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Takes all messages that wait.
fn changed(socket: &OwnedFd) -> Result<Changed, Errno> {
    let mut names = BTreeSet::new();
    let mut buffer = [0; 16_384];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => names.extend(interfaces(buffer.get(..len).unwrap_or(&buffer))),
            Err(Errno::AGAIN) => return Ok(Changed::These(names)),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The names of the interfaces in a datagram of rtnetlink.
fn interfaces(mut datagram: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    while let (Some(len), Some(kind)) = (word(datagram, 0), half(datagram, 4)) {
        let len = len as usize;
        let Some(message) = datagram.get(MESSAGE_HEADER..len) else { break };
        if [NEW_LINK, DEL_LINK].contains(&kind) {
            names.extend(name_in(message.get(LINK_HEADER..).unwrap_or_default()));
        }
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    names
}

/// IFLA_IFNAME of a list of attributes: length, type, value, filled up to four bytes.
fn name_in(mut attributes: &[u8]) -> Option<String> {
    while let (Some(len), Some(kind)) = (half(attributes, 0), half(attributes, 2)) {
        let value = attributes.get(4..usize::from(len))?;
        if kind == IF_NAME {
            let text = value.split(|&byte| byte == 0).next()?;
            return String::from_utf8(text.to_vec()).ok();
        }
        attributes = attributes.get(usize::from(len).next_multiple_of(4)..)?;
    }
    None
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[expect(clippy::host_endian_bytes, reason = "netlink is in the host's byte order")]
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// The host's interfaces as they are at the moment; what was found for a bridge holds for all that are on it.
#[derive(Debug, Default)]
struct HostNics {
    bridges: HashMap<String, u32>,
}

impl HostNics {
    /// The ifIndex of an interface and that of the physical one through which it reaches the network; 0 where
    /// there is none.
    fn if_indexes(&mut self, device: &str) -> (u32, u32) {
        self.if_indexes_in(Path::new(SYSFS), device)
    }

    fn if_indexes_in(&mut self, sysfs: &Path, device: &str) -> (u32, u32) {
        if !is_name(device) {
            return (0, 0);
        }
        (index(sysfs, device), self.parent(sysfs, device))
    }

    /// The ifIndex of the physical interface: for a tap, another port of the same bridge; for a macvtap, its lower device.
    fn parent(&mut self, sysfs: &Path, device: &str) -> u32 {
        let number = |found: Option<String>| found.map_or(0, |parent| index(sysfs, &parent));
        let bridge = fs::read_link(sysfs.join(device).join("master")).ok();
        let Some(bridge) = bridge.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
        else {
            let lower = below(sysfs, device);
            return number(lower.first().and_then(|lower| physical(sysfs, lower, 0)));
        };
        let find = |bridge: &String| {
            let ports = names(&sysfs.join(bridge).join("brif"));
            // The first by name, so that the answer does not depend on the order of a directory.
            number(ports.iter().find_map(|port| physical(sysfs, port, 0)))
        };
        *self.bridges.entry(bridge).or_insert_with_key(find)
    }
}

/// Whether the kernel accepts it as an interface name (dev_valid_name() in net/core/dev.c). Such a name cannot lead out of
/// sysfs.
fn is_name(device: &str) -> bool {
    !device.is_empty()
        && device.len() < 16
        && !device.contains('/')
        && device != "."
        && device != ".."
}

fn index(sysfs: &Path, device: &str) -> u32 {
    let text = fs::read_to_string(sysfs.join(device).join("ifindex")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The physical interface: this one, or one below it (VLAN). A bond counts as physical.
fn physical(sysfs: &Path, device: &str, depth: usize) -> Option<String> {
    let dir = sysfs.join(device);
    if dir.join("device").exists() || dir.join("bonding").exists() {
        return Some(device.to_owned());
    }
    if depth == MAX_DEPTH {
        return None;
    }
    below(sysfs, device).iter().find_map(|lower| physical(sysfs, lower, depth + 1))
}

fn below(sysfs: &Path, device: &str) -> Vec<String> {
    let lower = |name: &String| name.strip_prefix("lower_").map(str::to_owned);
    names(&sysfs.join(device)).iter().filter_map(lower).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host as sysfs shows it: each interface with its number and what it has beside that.
    fn host(interfaces: &[(&str, u32, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, number, parts) in interfaces {
            let dir = root.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("ifindex"), format!("{number}\n")).unwrap();
            for part in *parts {
                match part.split_once('=') {
                    Some((link, target)) => {
                        symlink(format!("../{target}"), dir.join(link)).unwrap()
                    }
                    None => fs::create_dir_all(dir.join(part)).unwrap(),
                }
            }
        }
        root
    }

    #[test]
    fn the_physical_interface_behind_each_kind() {
        let host = host(&[
            ("eth0", 2, &["device"]),
            ("eth1", 3, &["device"]),
            ("bond0", 4, &["bonding", "lower_eth1=eth1"]),
            ("eth0.7", 5, &["lower_eth0=eth0"]),
            ("br0", 6, &["brif/eth0.7", "brif/vnet0"]),
            ("br1", 7, &["brif/bond0", "brif/vnet1"]),
            ("br2", 8, &["brif/vnet2"]),
            ("vnet0", 10, &["master=br0"]),
            ("vnet1", 11, &["master=br1"]),
            ("vnet2", 12, &["master=br2"]),
            ("macvtap0", 13, &["lower_eth1=eth1"]),
            ("tap9", 14, &[]),
            ("loop", 15, &["lower_loop=loop"]),
        ]);
        let mut interfaces = HostNics::default();
        for (device, expected) in [
            ("vnet0", (10, 2)),
            ("vnet1", (11, 4)),
            ("vnet2", (12, 0)),
            ("macvtap0", (13, 3)),
            ("tap9", (14, 0)),
            ("loop", (15, 0)),
            ("absent", (0, 0)),
            ("../../etc", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(interfaces.if_indexes_in(host.path(), device), expected, "{device}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_datagram_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = interfaces(&bytes);
        }
    }

    #[test]
    fn the_kernel_names_the_interface_that_changes() {
        let mut message = vec![0; MESSAGE_HEADER + LINK_HEADER];
        message.extend([6, 0, 1, 0, 9, 9, 0, 0]);
        message.extend([10, 0, 3, 0]);
        message.extend(b"vnet7\0\0\0");
        message[0] = u8::try_from(message.len()).unwrap();
        message[4] = 16;
        let twice = [&message[..], &message].concat();
        assert_eq!(interfaces(&twice), ["vnet7", "vnet7"]);
        assert!(interfaces(&twice[..40]).is_empty());
    }
}

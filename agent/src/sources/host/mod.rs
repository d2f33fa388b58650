//! The host's network interfaces as IF-MIB numbers them. net-snmp's ifIndex is the kernel's own
//! (agent/mibgroup/if-mib/data_access/interface_linux.c). A netlink socket reports what has changed (rtnetlink(7)), so that
//! nothing is read again for an event of a VM.

mod links;
mod topology;

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

use self::{
    links::{BUFFER, Link, Message},
    topology::{Node, Role, Topology},
};
use super::timespec;
use crate::{
    inventory::{Fact, NicNumbers},
    worker::Facts,
};

/// Where the kernel shows its interfaces.
const SYSFS: &str = "/sys/class/net";

/// RTMGRP_LINK (linux/rtnetlink.h): interfaces that come, go and change.
const LINK_GROUP: u32 = 1;

/// Shortest interval between two listings of all interfaces, which follow a change of an interface that others may lie on.
const SCAN_PAUSE: Duration = Duration::from_secs(1);

/// Reports the numbers of all interfaces, and from then on those that change, on a thread that lives as long as the
/// process.
///
/// # Errors
///
/// Those of the netlink sockets or the thread. What was reported stays as it is then.
pub fn start(facts: Facts) -> io::Result<()> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, LINK_GROUP))?;
    let mut links = Links { facts, topology: Topology::default(), known: HashMap::new() };
    links.scan()?;
    std::thread::Builder::new()
        .name("host nics".to_owned())
        .spawn(move || links.follow(&socket))?;
    Ok(())
}

/// The interfaces, and what was reported of each.
struct Links {
    facts: Facts,
    topology: Topology,
    known: HashMap<String, NicNumbers>,
}

impl Links {
    fn follow(mut self, socket: &OwnedFd) {
        let _end = self.facts.end_guard("host nics");
        let (mut scanned, mut scan_due) = (Instant::now(), None::<Instant>);
        loop {
            let limit = scan_due.map(|due| due.saturating_duration_since(Instant::now()));
            let is_all = match wait(socket, limit).and_then(|()| self.take_changes(socket)) {
                Ok(is_all) => is_all,
                // More changes than the socket's buffer holds.
                Err(Errno::NOBUFS) => true,
                Err(error) => {
                    warn!("Cannot follow the host's interfaces: {error}; their numbers stay");
                    return;
                }
            };
            if is_all {
                scan_due.get_or_insert(scanned + SCAN_PAUSE);
            }
            if scan_due.is_some_and(|due| due <= Instant::now()) {
                (scanned, scan_due) = (Instant::now(), None);
                if let Err(error) = self.scan() {
                    warn!("Cannot list the host's interfaces: {error}; trying again");
                    scan_due = Some(scanned + SCAN_PAUSE);
                }
            }
        }
    }

    /// Takes all messages that wait. Returns whether all interfaces are to be listed again.
    fn take_changes(&mut self, socket: &OwnedFd) -> Result<bool, Errno> {
        let mut is_all = false;
        let mut buffer = vec![0; BUFFER];
        loop {
            let len = match recv(socket, &mut buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(Errno::AGAIN) => return Ok(is_all),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            for message in links::messages(buffer.get(..len).unwrap_or(&buffer)) {
                is_all |= !self.follow_tap(message);
            }
        }
    }

    /// Follows a change of a tap at once: nothing lies on it. Returns whether it was one.
    fn follow_tap(&mut self, message: Message) -> bool {
        let (link, is_gone) = match message {
            Message::Is(link) => (link, false),
            Message::Gone(link) => (link, true),
            Message::End | Message::Failed | Message::Interrupted => return true,
        };
        if link.kind != "tun" {
            return false;
        }
        let index = link.index;
        let before = match is_gone {
            true => self.topology.remove(index),
            false => self.topology.put(index, node(link)),
        };
        if let Some(before) = before {
            let has_name = |(name, _)| name == before.name;
            if !self.topology.numbers(index).is_some_and(has_name) {
                self.report(before.name, None);
            }
        }
        let now = self.topology.numbers(index);
        if let Some((name, numbers)) = now.map(|(name, numbers)| (name.to_owned(), numbers)) {
            self.report(name, Some(numbers));
        }
        true
    }

    /// Lists all interfaces, and reports those that differ from what was reported.
    fn scan(&mut self) -> Result<(), Errno> {
        let nodes = links::list()?.into_iter().map(|link| (link.index, link));
        let mut nodes: HashMap<u32, Link> = nodes.collect();
        let lowers: Vec<(u32, u32)> = lowers_in_sysfs(&nodes);
        for (index, lower) in lowers {
            nodes.entry(index).and_modify(|link| link.lower = Some(lower));
        }
        let nodes = nodes.into_iter().map(|(index, link)| (index, node(link)));
        self.topology = Topology::new(nodes.collect());
        let all: HashMap<String, NicNumbers> =
            self.topology.all().map(|(name, numbers)| (name.to_owned(), numbers)).collect();
        let gone: BTreeSet<String> =
            self.known.keys().filter(|name| !all.contains_key(*name)).cloned().collect();
        for name in gone {
            self.report(name, None);
        }
        for (name, numbers) in all {
            self.report(name, Some(numbers));
        }
        Ok(())
    }

    fn report(&mut self, name: String, numbers: Option<NicNumbers>) {
        let before = match numbers {
            Some(numbers) => self.known.insert(name.clone(), numbers),
            None => self.known.remove(&name),
        };
        if before != numbers {
            self.facts.send(Fact::HostNic(name, numbers));
        }
    }
}

fn node(link: Link) -> Node {
    let role = Role::of(&link.kind, || Path::new(SYSFS).join(&link.name).join("device").exists());
    Node::of(link, role)
}

/// What is below tunnels: netlink has no number for it that all kinds share.
fn lowers_in_sysfs(links: &HashMap<u32, Link>) -> Vec<(u32, u32)> {
    let lower = |link: &Link| {
        let entries = fs::read_dir(Path::new(SYSFS).join(&link.name)).ok()?;
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let lowers = names.filter_map(|name| name.strip_prefix("lower_").map(str::to_owned));
        let first = lowers.min()?;
        links.values().find(|link| link.name == first).map(|link| link.index)
    };
    let is_tunnel = |link: &&Link| link.lower.is_none() && link.kind == "vxlan";
    links.values().filter(is_tunnel).filter_map(|link| Some((link.index, lower(link)?))).collect()
}

fn wait(socket: &OwnedFd, limit: Option<Duration>) -> Result<(), Errno> {
    let limit = limit.map(timespec);
    match poll(&mut [PollFd::new(socket, PollFlags::IN)], limit.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error),
    }
}

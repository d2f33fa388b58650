//! Through which physical interface each interface of the host reaches the network.
//!
//! From a tap the way leads to its bridge, from a macvtap to the interface below it, from a VLAN or macvlan to what is below,
//! from a veth through its peer to the peer's bridge. It ends at hardware or a bond. The way through the fewest bridges
//! counts; among equal ones, each bridge takes the port with the first name.

use std::collections::HashMap;

use super::links::Link;
use crate::inventory::{IfIndex, NicNumbers};

/// The longest chain of interfaces upon interfaces that is followed. The kernel allows 8 (MAX_NEST_DEV).
const MAX_DEPTH: usize = 8;

/// What an interface is on the way to the network.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Role {
    /// Hardware.
    Physical,
    /// A bond or team, which counts as physical.
    Aggregate,
    Bridge,
    /// A tap or macvtap, which a process can hold.
    Tap,
    /// One end of a pair.
    Pair,
    /// A switch whose ports the kernel does not tell apart.
    OpenVSwitch,
    Other,
}

impl Role {
    /// `has_hardware`: whether there is a device behind it.
    pub(super) fn of(kind: &str, has_hardware: impl FnOnce() -> bool) -> Self {
        match kind {
            "bond" | "team" => Self::Aggregate,
            "bridge" => Self::Bridge,
            "tun" | "macvtap" | "ipvtap" => Self::Tap,
            "veth" | "netkit" => Self::Pair,
            "openvswitch" => Self::OpenVSwitch,
            "vlan" | "macvlan" | "ipvlan" | "dummy" | "ifb" | "vxlan" => Self::Other,
            _ if has_hardware() => Self::Physical,
            _ => Self::Other,
        }
    }
}

/// An interface and what it is.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) master: Option<u32>,
    pub(super) lower: Option<u32>,
    pub(super) owner: Option<u32>,
}

impl Node {
    pub(super) fn of(link: Link, role: Role) -> Self {
        let Link { name, master, lower, owner, .. } = link;
        Self { name, role, master, lower, owner }
    }
}

/// The end of a way without bridges.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    Physical(u32),
    Bridge(u32),
    Absent(&'static str),
}

const NO_BRIDGE: End = End::Absent("it is in no bridge");
const NOTHING_BELOW: End = End::Absent("there is no physical interface below it");
const BEHIND_SWITCH: End =
    End::Absent("the kernel does not tell which ports of Open vSwitch belong together");

/// The interfaces, by ifIndex.
#[derive(Debug, Default)]
pub(super) struct Topology {
    nodes: HashMap<u32, Node>,
    /// The physical interface of each bridge that reaches one.
    of_bridge: HashMap<u32, u32>,
}

impl Topology {
    /// Finds the physical interface of each bridge. Costs as much as there are interfaces, and once more for each bridge
    /// between the farthest one and hardware.
    pub(super) fn new(nodes: HashMap<u32, Node>) -> Self {
        let mut found = Self { nodes, of_bridge: HashMap::new() };
        let mut neighbours = found.neighbours();
        loop {
            let next = |bridge: &u32| found.of_bridge.get(bridge).copied();
            let of_neighbour = neighbours
                .iter()
                .filter_map(|(bridge, others)| Some((*bridge, others.iter().find_map(next)?)));
            let level: Vec<(u32, u32)> = of_neighbour.collect();
            if level.is_empty() {
                return found;
            }
            for (bridge, physical) in level {
                found.of_bridge.insert(bridge, physical);
                neighbours.remove(&bridge);
            }
        }
    }

    /// Notes the physical interfaces among the ports of each bridge, and returns the bridges next to the others, in the order
    /// of the names of the ports that lead there.
    fn neighbours(&mut self) -> HashMap<u32, Vec<u32>> {
        let mut ports: HashMap<u32, Vec<(&str, u32)>> = HashMap::new();
        for (&index, node) in self.nodes.iter().filter(|(_, node)| node.role != Role::Tap) {
            if let Some(bridge) = node.master.filter(|of| self.is_bridge(*of)) {
                ports.entry(bridge).or_default().push((&node.name, index));
            }
        }
        let mut neighbours: HashMap<u32, Vec<u32>> = HashMap::new();
        for (bridge, mut ports) in ports {
            ports.sort_unstable();
            let ends: Vec<End> = ports.iter().map(|(_, port)| self.end(*port, 0)).collect();
            let physical = ends.iter().find_map(|end| match end {
                End::Physical(physical) => Some(*physical),
                _ => None,
            });
            if let Some(physical) = physical {
                self.of_bridge.insert(bridge, physical);
                continue;
            }
            let others = ends.iter().filter_map(|end| match end {
                End::Bridge(other) if *other != bridge => Some(*other),
                _ => None,
            });
            neighbours.insert(bridge, others.collect());
        }
        neighbours
    }

    fn is_bridge(&self, index: u32) -> bool {
        self.nodes.get(&index).is_some_and(|node| node.role == Role::Bridge)
    }

    /// The interfaces, with their numbers.
    pub(super) fn all(&self) -> impl Iterator<Item = (&str, NicNumbers)> {
        self.nodes.keys().filter_map(|index| self.numbers(*index))
    }

    /// The name of an interface and its numbers.
    pub(super) fn numbers(&self, index: u32) -> Option<(&str, NicNumbers)> {
        let node = self.nodes.get(&index)?;
        let end = match node.role {
            Role::Tap => self.end_of_tap(node),
            _ => self.end(index, 0),
        };
        let parent = match end {
            End::Physical(physical) => IfIndex::Is(physical),
            End::Bridge(bridge) => match self.of_bridge.get(&bridge) {
                Some(physical) => IfIndex::Is(*physical),
                None => IfIndex::Absent("no physical interface is reached through its bridge"),
            },
            End::Absent(why) => IfIndex::Absent(why),
        };
        let is_tap = node.role == Role::Tap;
        Some((&node.name, NicNumbers { if_index: index, is_tap, owner: node.owner, parent }))
    }

    fn end_of_tap(&self, node: &Node) -> End {
        match self.end_above(node) {
            Some(end) => end,
            None => node.lower.map_or(NO_BRIDGE, |lower| self.end(lower, 1)),
        }
    }

    /// Where the master leads.
    fn end_above(&self, node: &Node) -> Option<End> {
        let master = node.master?;
        match self.nodes.get(&master)?.role {
            Role::Bridge => Some(End::Bridge(master)),
            Role::Aggregate => Some(End::Physical(master)),
            Role::OpenVSwitch => Some(BEHIND_SWITCH),
            _ => None,
        }
    }

    /// Where an interface leads, seen from what is above it.
    fn end(&self, index: u32, depth: usize) -> End {
        let Some(node) = self.nodes.get(&index) else { return NOTHING_BELOW };
        let lower = node.lower.filter(|_| depth < MAX_DEPTH);
        match (node.role, lower) {
            (Role::Physical | Role::Aggregate, _) => End::Physical(index),
            (Role::Bridge, _) => End::Bridge(index),
            (Role::Pair, Some(peer)) => match self.nodes.get(&peer) {
                // The number may have become another interface's.
                Some(node) if node.role == Role::Pair && node.lower == Some(index) => {
                    self.end_above(node).unwrap_or(NOTHING_BELOW)
                }
                _ => NOTHING_BELOW,
            },
            (_, Some(lower)) => self.end(lower, depth + 1),
            (_, None) => NOTHING_BELOW,
        }
    }

    /// An interface has come or changed that no other one lies on.
    pub(super) fn put(&mut self, index: u32, node: Node) -> Option<Node> {
        self.nodes.insert(index, node)
    }

    /// Such an interface is gone.
    pub(super) fn remove(&mut self, index: u32) -> Option<Node> {
        self.nodes.remove(&index)
    }
}

#[cfg(test)]
mod tests;

//! QEMU's graph of block nodes, built from `-blockdev` and `-drive` options: filters and formats above protocol nodes.

use std::{cell::Cell, collections::HashMap};

use super::{
    super::options::Fields,
    services::{is_protocol, location},
};
use crate::sources::storage_location::Location;

/// Longest path through the graph that is followed: bounds cycles in hostile options. Chains in use are shorter.
const MAX_DEPTH: usize = 200;

/// Most nodes that are visited for a process: four for each of the most disks that are kept, and room for backing chains.
const MAX_VISITS: usize = 1 << 17;

/// Deepest nesting of `json:` in file names that is read.
const MAX_NAMES: u32 = 8;

/// Drivers of filter nodes, which pass requests through to the node below.
const FILTERS: [&str; 8] = [
    "throttle",
    "copy-on-read",
    "compress",
    "preallocate",
    "blkdebug",
    "blkverify",
    "blklogwrites",
    "blkreplay",
];

/// Where a node has the node below it.
const BELOW: [&str; 4] = ["file", "image", "test", "children.0"];

/// A block node: an option of its own, or a nested part of one.
pub(super) type Node<'a> = &'a Fields;

/// The nodes of a process.
#[derive(Debug, Default)]
pub(super) struct Nodes<'a> {
    named: HashMap<&'a str, Node<'a>>,
    /// How many more nodes may be visited.
    visits: Cell<usize>,
}

impl<'a> Nodes<'a> {
    /// The nodes of options, nested ones too, by node-name.
    pub(super) fn of(options: impl Iterator<Item = Node<'a>>) -> Self {
        let mut found = Self { named: HashMap::new(), visits: Cell::new(MAX_VISITS) };
        for option in options {
            found.add(option);
        }
        found
    }

    fn add(&mut self, node: Node<'a>) {
        if let Some(name) = node.get("node-name") {
            self.named.entry(name).or_insert(node);
        }
        for (_, member) in node.members() {
            self.add(member);
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Node<'a>> {
        self.named.get(name).copied()
    }

    /// The node that the field `name` refers to by name or contains.
    fn child(&self, node: Node<'a>, name: &str) -> Option<Node<'a>> {
        self.visits.set(self.visits.get().checked_sub(1)?);
        let child = name.split('.').try_fold(node, |fields, name| fields.child(name))?;
        let named = child.implied().and_then(|name| self.get(name));
        named.or_else(|| child.members().next().map(|_| child))
    }

    /// The node and those below it, down to the protocol node.
    pub(super) fn path_to_protocol(&self, node: Node<'a>) -> Vec<Node<'a>> {
        let below = |node: &Node<'a>| BELOW.iter().find_map(|name| self.child(node, name));
        std::iter::successors(Some(node), below).take(MAX_DEPTH).collect()
    }

    /// Where a node's data is; `None`: not told, or not understood.
    pub(super) fn location(&self, node: Node<'a>) -> Option<Location> {
        location(self.path_to_protocol(node).last()?)
    }

    /// The format node: the first below any filters.
    pub(super) fn format_node(&self, node: Node<'a>) -> Node<'a> {
        let is_filter =
            |node: &&Node<'a>| FILTERS.contains(&node.get("driver").unwrap_or_default());
        let path = self.path_to_protocol(node);
        path.iter().find(|node| !is_filter(node)).copied().unwrap_or(node)
    }
}

/// Whether the node's driver is an image format other than raw.
pub(super) fn has_format(node: Node<'_>) -> bool {
    node.get("driver").is_some_and(|driver| driver != "raw" && !is_protocol(driver))
}

/// Puts the members of `json:{…}` in the place of such a file name, in a drive and in every node that is nested in it.
pub(super) fn expand_names(node: &mut Fields) {
    expand(node, 0);
}

fn expand(node: &mut Fields, names: u32) {
    let mut names = names;
    while names < MAX_NAMES
        && let Some(json) = node.get("filename").and_then(|name| name.strip_prefix("json:"))
    {
        names += 1;
        let Some(members) = Fields::parse_json(json) else { break };
        node.take("filename");
        node.complete(members);
    }
    for member in node.members_mut() {
        expand(member, names);
    }
}

/// The files of a disk other than its top image, as far as the options name them.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// Backing files and external data files.
    pub(super) others: Vec<String>,
    /// The rest of the backing chain is known from the image headers only.
    pub(super) chain_is_in_image: bool,
}

impl Chain {
    pub(super) fn of(node: Node<'_>, nodes: &Nodes<'_>) -> Self {
        let mut chain = Self::default();
        let mut next = Some(nodes.format_node(node));
        for depth in 0..MAX_DEPTH {
            let Some(node) = next else { break };
            if depth > 0 {
                chain.add(nodes.location(node));
            }
            chain.add(nodes.child(node, "data-file").and_then(|data| nodes.location(data)));
            // Of a quorum, which has no format, the first is the top image.
            for (at, _) in node.member("children").into_iter().flat_map(Fields::members) {
                if nodes.visits.get() == 0 {
                    break;
                }
                if at != "0" {
                    let copy = nodes.child(node, &format!("children.{at}"));
                    chain.add(copy.and_then(|copy| nodes.location(copy)));
                }
            }
            next = nodes.child(node, "backing").map(|below| nodes.format_node(below));
            // `"backing": null` says that there is no backing file; an absent key leaves it to the header.
            chain.chain_is_in_image |=
                has_format(node) && next.is_none() && node.get("backing").is_none();
        }
        chain
    }

    fn add(&mut self, location: Option<Location>) {
        if let Some(Location::Local(path)) = location {
            self.others.push(path);
        }
    }
}

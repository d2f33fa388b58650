//! QEMU's graph of block nodes, built from `-blockdev` and `-drive` options: filters and formats above protocol nodes.

use std::collections::HashMap;

use super::options::Fields;

/// Longest path through the graph that is followed: bounds cycles in hostile options. Chains in use are shorter.
const MAX_DEPTH: usize = 200;

/// Drivers of filter nodes, which pass requests through to the node below.
const FILTERS: [&str; 4] = ["throttle", "copy-on-read", "compress", "preallocate"];

/// A block node: an option of its own, or a nested part of one.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    fields: &'a Fields,
    /// Key prefix of the node's own fields, such as `file.` for a nested node.
    prefix: String,
}

/// Named nodes, by node-name.
pub(super) type Nodes<'a> = HashMap<&'a str, &'a Fields>;

impl<'a> Node<'a> {
    /// The node that an option describes at its top level.
    pub(super) fn top(fields: &'a Fields) -> Self {
        Self { fields, prefix: String::new() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.fields.get(&format!("{}{key}", self.prefix))
    }

    /// The node that the field `child` refers to by name or contains.
    fn child(&self, child: &str, nodes: &Nodes<'a>) -> Option<Self> {
        if let Some(named) = self.get(child).and_then(|name| nodes.get(name)) {
            return Some(Self::top(named));
        }
        let prefix = format!("{}{child}.", self.prefix);
        self.fields.has_prefix(&prefix).then_some(Self { fields: self.fields, prefix })
    }

    /// This node and the `file` nodes below it, down to the protocol node.
    pub(super) fn file_path(&self, nodes: &Nodes<'a>) -> Vec<Self> {
        let below = |node: &Self| node.child("file", nodes);
        std::iter::successors(Some(self.clone()), below).take(MAX_DEPTH).collect()
    }

    /// The path of the file or device that has the node's data.
    pub(super) fn filename(&self, nodes: &Nodes<'a>) -> Option<&'a str> {
        self.file_path(nodes).iter().find_map(|node| node.get("filename"))
    }

    /// The format node: the first below any filters.
    pub(super) fn format_node(&self, nodes: &Nodes<'a>) -> Self {
        let is_filter = |node: &&Self| FILTERS.contains(&node.get("driver").unwrap_or_default());
        let all = self.file_path(nodes);
        all.iter().find(|node| !is_filter(node)).unwrap_or(self).clone()
    }

    /// Whether the node's driver is an image format other than raw.
    pub(super) fn has_format(&self) -> bool {
        !matches!(self.get("driver").unwrap_or("raw"), "raw" | "file" | "host_device")
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
    pub(super) fn of(node: &Node<'_>, nodes: &Nodes<'_>) -> Self {
        let mut chain = Self::default();
        let mut next = Some(node.format_node(nodes));
        for depth in 0..MAX_DEPTH {
            let Some(node) = next else { break };
            let own = (depth > 0).then(|| node.filename(nodes)).flatten();
            let data = node.child("data-file", nodes).and_then(|data| data.filename(nodes));
            chain.others.extend(own.into_iter().chain(data).map(str::to_owned));
            next = node.child("backing", nodes).map(|below| below.format_node(nodes));
            // `"backing": null` says that there is no backing file; an absent key leaves it to the header.
            chain.chain_is_in_image |=
                node.has_format() && next.is_none() && node.get("backing").is_none();
        }
        chain
    }
}

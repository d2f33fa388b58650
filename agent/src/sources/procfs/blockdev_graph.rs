//! The nodes of QEMU's block layer, as options tell of them: each with fields, and with nodes below it that it names or
//! holds itself.

use std::collections::HashMap;

use super::options::{Fields, get};

/// No chain of images is longer than QEMU allows, and none of nodes is in use.
const MAX_DEPTH: usize = 200;

/// Drivers of nodes that let everything pass to the one below.
const FILTERS: [&str; 4] = ["throttle", "copy-on-read", "compress", "preallocate"];

/// A node of QEMU's block layer: an option of its own, or a part of one.
#[derive(Clone, Debug)]
pub(super) struct Node<'a> {
    fields: &'a Fields,
    /// What the names of its fields begin with.
    prefix: String,
}

/// The nodes that have names.
pub(super) type Nodes<'a> = HashMap<&'a str, &'a Fields>;

impl<'a> Node<'a> {
    pub(super) fn whole(fields: &'a Fields) -> Self {
        Self { fields, prefix: String::new() }
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        get(self.fields, &format!("{}{key}", self.prefix))
    }

    /// The one below it that it calls so, which it names or holds.
    fn below(&self, child: &str, nodes: &Nodes<'a>) -> Option<Self> {
        if let Some(named) = self.get(child).and_then(|name| nodes.get(name)) {
            return Some(Self::whole(named));
        }
        let prefix = format!("{}{child}.", self.prefix);
        let holds = self.fields.iter().any(|(key, _)| key.starts_with(&prefix));
        holds.then_some(Self { fields: self.fields, prefix })
    }

    /// It and those that hold its own data, down to the file.
    pub(super) fn to_file(&self, nodes: &Nodes<'a>) -> Vec<Self> {
        let below = |node: &Self| node.below("file", nodes);
        std::iter::successors(Some(self.clone()), below).take(MAX_DEPTH).collect()
    }

    pub(super) fn path(&self, nodes: &Nodes<'a>) -> Option<&'a str> {
        self.to_file(nodes).iter().find_map(|node| node.get("filename"))
    }

    /// The one that knows the format, below those that only let pass.
    pub(super) fn of_format(&self, nodes: &Nodes<'a>) -> Self {
        let is_filter = |node: &&Self| FILTERS.contains(&node.get("driver").unwrap_or_default());
        let all = self.to_file(nodes);
        all.iter().find(|node| !is_filter(node)).unwrap_or(self).clone()
    }

    pub(super) fn has_format(&self) -> bool {
        !matches!(self.get("driver").unwrap_or("raw"), "raw" | "file" | "host_device")
    }
}

/// What a disk's image is made of beside the file on top, as far as the options tell.
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// The files with the data of another, and those that images are based on.
    pub(super) others: Vec<String>,
    /// What an image is based on is told by itself alone.
    pub(super) chain_is_in_image: bool,
}

impl Chain {
    pub(super) fn of(node: &Node<'_>, nodes: &Nodes<'_>) -> Self {
        let mut chain = Self::default();
        let mut next = Some(node.of_format(nodes));
        for depth in 0..MAX_DEPTH {
            let Some(node) = next else { break };
            let own = (depth > 0).then(|| node.path(nodes)).flatten();
            let data = node.below("data-file", nodes).and_then(|data| data.path(nodes));
            chain.others.extend(own.into_iter().chain(data).map(str::to_owned));
            next = node.below("backing", nodes).map(|below| below.of_format(nodes));
            chain.chain_is_in_image |=
                node.has_format() && next.is_none() && node.get("backing").is_none();
        }
        chain
    }
}

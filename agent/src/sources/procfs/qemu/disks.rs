//! The disks of a QEMU: `-drive` and its short forms, and `-blockdev` with the `-device` that uses it.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{
    super::{
        devices::{MAX_DEVICES, disk},
        options::{Fields, is_on},
    },
    arguments::{Entry, Subject},
    nodes::{Chain, Nodes, expand_names, has_format},
    services::location,
};
use crate::{
    inventory::{DomainDisk, StorageAccess, StorageMedia, Submission},
    sources::storage_location::Location,
};

/// Most images of which the paths are kept.
const MAX_IMAGES: usize = 1024;

/// Brings block nodes into one form: a drive's image is its member `file`, its format its driver.
pub(super) fn normalize(entry: &mut Entry) {
    match entry.subject {
        Subject::Blockdev => {
            // The driver is the implied key.
            if let Some(driver) = entry.fields.implied().map(str::to_owned) {
                entry.fields.set("driver", &driver);
            }
        }
        Subject::Drive => {
            let fields = &mut entry.fields;
            if let Some(format) = fields.take("format") {
                fields.set("driver", &format);
            }
            if let Some(name) = fields.take("file").filter(|name| !name.is_empty()) {
                match name.strip_prefix("json:") {
                    // A name in JSON describes the drive itself.
                    Some(_) => fields.set("filename", &name),
                    None => fields.set("file.filename", &name),
                }
            }
        }
        _ => return,
    }
    expand_names(&mut entry.fields);
    // What was not understood may contain anything.
    if entry.subject == Subject::Drive
        && let Some(name) = entry.fields.take("filename")
    {
        entry.fields.set("file.filename", &name);
    }
}

/// The use of a drive or node by a device.
#[derive(Clone, Copy)]
struct Device<'a> {
    driver: &'a str,
    fields: &'a Fields,
}

impl Device<'_> {
    /// The bus in the guest: `virtio` of `virtio-blk-pci`.
    fn bus(&self) -> &str {
        match self.driver.split('-').next().unwrap_or_default() {
            "isa" | "sysbus" | "floppy" => "floppy",
            bus => bus,
        }
    }

    fn is_optical(&self) -> bool {
        self.driver.ends_with("-cd")
    }

    fn media(&self) -> StorageMedia {
        match self.bus() {
            _ if self.is_optical() => StorageMedia::OpticalDisk,
            "floppy" => StorageMedia::FloppyDisk,
            _ => StorageMedia::HardDisk,
        }
    }
}

/// Each drive or node that a device uses.
fn uses<'a>(entry: &'a Entry) -> impl Iterator<Item = (&'a str, Device<'a>)> {
    let (driver, fields) = match entry.subject {
        Subject::Device => {
            (entry.fields.get_or_implied("driver").unwrap_or_default(), Some(&entry.fields))
        }
        Subject::Global => ("isa-fdc", entry.fields.member("isa-fdc")),
        _ => ("", None),
    };
    // Firmware, not a disk.
    let fields = fields.filter(|_| !driver.contains("pflash"));
    let keys = ["drive", "driveA", "driveB"];
    keys.into_iter().filter_map(move |key| {
        let fields = fields?;
        Some((fields.get(key)?, Device { driver, fields }))
    })
}

/// The disks of normalized options, in their order, as many as are kept. `default_bus`: of drives that name none. `flashes`: drives with firmware.
pub(super) fn disks(entries: &[Entry], default_bus: &str, flashes: &[String]) -> Vec<DomainDisk> {
    let nodes = Nodes::of(nodes_of(entries));
    let mut devices: HashMap<&str, Device<'_>> = HashMap::new();
    for (name, device) in entries.iter().flat_map(uses) {
        devices.entry(name).or_insert(device);
    }
    let drives = entries.iter().filter(|entry| entry.subject == Subject::Drive);
    let ids: HashSet<&str> = drives.filter_map(|entry| entry.fields.get("id")).collect();
    let mut disks = Vec::new();
    for entry in entries {
        if disks.len() >= MAX_DEVICES {
            break;
        }
        match entry.subject {
            Subject::Drive => {
                let id = entry.fields.get("id");
                let is_flash = entry.fields.get("if") == Some("pflash")
                    || id.is_some_and(|id| flashes.iter().any(|flash| flash == id));
                if !is_flash {
                    let device = id.and_then(|id| devices.get(id));
                    disks.extend(drive(entry, device, &nodes, default_bus));
                }
            }
            Subject::Device | Subject::Global => {
                let of_nodes = uses(entry).filter(|(name, _)| !ids.contains(name));
                disks.extend(of_nodes.filter_map(|(name, device)| node_disk(name, device, &nodes)));
            }
            _ => {}
        }
    }
    disks
}

/// Paths of the images of all nodes, as many as are kept: also of firmware, and of nodes that no device uses.
pub(super) fn images(entries: &[Entry]) -> Vec<String> {
    let mut left: Vec<&Fields> = nodes_of(entries).collect();
    let mut images = BTreeSet::new();
    while let Some(node) = left.pop()
        && images.len() < MAX_IMAGES
    {
        if let Some(Location::Local(path)) = location(node) {
            images.insert(path);
        }
        left.extend(node.members().map(|(_, member)| member));
    }
    images.into_iter().collect()
}

/// The options that describe block nodes.
fn nodes_of(entries: &[Entry]) -> impl Iterator<Item = &Fields> {
    let is_node = |entry: &&Entry| matches!(entry.subject, Subject::Blockdev | Subject::Drive);
    entries.iter().filter(is_node).map(|entry| &entry.fields)
}

/// The disk of a `-drive` option; `None`: an empty drive of fixed media.
fn drive(
    entry: &Entry,
    device: Option<&Device<'_>>,
    nodes: &Nodes<'_>,
    default_bus: &str,
) -> Option<DomainDisk> {
    let fields = &entry.fields;
    let interface = fields.get("if");
    let bus = match (interface, device) {
        (Some("none") | None, Some(device)) => device.bus(),
        (Some("none"), None) => "",
        (Some(named), _) => named,
        (None, None) => default_bus,
    };
    let is_optical = fields.get("media") == Some("cdrom") || device.is_some_and(Device::is_optical);
    let has_image = fields.member("file").is_some() || nodes.location(fields).is_some();
    if !has_image && !is_optical && bus != "floppy" {
        return None;
    }
    let name = match (fields.get("id"), entry.short_for) {
        (Some(id), _) => id.to_owned(),
        // The name does not depend on the board.
        (None, "") => {
            format!("{}{}", interface.unwrap_or("ide"), fields.get("index").unwrap_or("0"))
        }
        (None, short) => short.to_owned(),
    };
    let mut disk = block_disk(&name, fields, nodes);
    // QEMU probes the image's header where the format is not given.
    disk.chain_is_in_image |= fields.get("driver").is_none() && disk.others.is_empty();
    if is_optical {
        disk.access = StorageAccess::ReadOnly;
    }
    disk.media = match (device, bus) {
        _ if is_optical => StorageMedia::OpticalDisk,
        (_, "floppy") => StorageMedia::FloppyDisk,
        (Some(device), _) => device.media(),
        _ => StorageMedia::HardDisk,
    };
    disk.bus = bus.to_owned();
    Some(disk)
}

/// The disk that a device makes of a block node; `None`: no option describes the node.
fn node_disk(name: &str, device: Device<'_>, nodes: &Nodes<'_>) -> Option<DomainDisk> {
    let node = nodes.get(name)?;
    let mut disk = block_disk(device.fields.get("id").unwrap_or(name), node, nodes);
    if device.is_optical() {
        disk.access = StorageAccess::ReadOnly;
    }
    disk.media = device.media();
    disk.bus = device.bus().to_owned();
    Some(disk)
}

/// A disk with the data of a block node.
fn block_disk<'a>(name: &str, node: &'a Fields, nodes: &Nodes<'a>) -> DomainDisk {
    let path = nodes.path_to_protocol(node);
    let first = |key| path.iter().find_map(|node| node.get(key));
    let format_node = nodes.format_node(node);
    let format = if has_format(format_node) { format_node.get("driver") } else { None };
    let is_read_only = is_on(first("read-only").or_else(|| first("readonly")));
    let mut disk = disk(name, nodes.location(node), format.unwrap_or("raw"), is_read_only);
    disk.submission = Submission::of(first("aio").unwrap_or_default());
    let chain = Chain::of(node, nodes);
    (disk.others, disk.chain_is_in_image) = (chain.others, chain.chain_is_in_image);
    disk
}

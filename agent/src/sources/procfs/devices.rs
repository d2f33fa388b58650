//! The disks and NICs of a VMM: what the forms of their descriptions share, and Firecracker's configuration file. Accepts any
//! bytes.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::process::Measured;
use crate::{
    inventory::{
        Devices, DiskSize, DomainDisk, DomainNic, StorageAccess, StorageMedia, StorageSource,
        Submission, mac,
    },
    sources::storage_location::Location,
};

/// Most disks, and most NICs, of a VM; a longer list is truncated. Each costs lookups in every
/// scan.
pub(super) const MAX_DEVICES: usize = 512;

/// Parses Firecracker's configuration file (docs/getting-started.md, `--config-file`).
pub(super) fn firecracker(config: &[u8]) -> Devices {
    let Ok(config) = serde_json::from_slice::<Json>(config) else { return Devices::default() };
    let list = |name: &str| config.get(name).and_then(Json::as_array).cloned().unwrap_or_default();
    let text = |item: &Json, name: &str| {
        item.get(name).and_then(Json::as_str).unwrap_or_default().to_owned()
    };
    let mut devices = Devices {
        disks: list("drives")
            .iter()
            .map(|drive| {
                let is_read_only = drive.get("is_read_only").and_then(Json::as_bool) == Some(true);
                let path = Some(text(drive, "path_on_host")).filter(|path| !path.is_empty());
                let location = path.as_deref().map(Location::of_path);
                disk(&text(drive, "drive_id"), location, "raw", is_read_only)
            })
            .collect(),
        nics: list("network-interfaces")
            .iter()
            .map(|nic| DomainNic {
                mac: mac(&text(nic, "guest_mac")),
                device: Some(text(nic, "host_dev_name")),
                unnamed: None,
                model: "virtio".to_owned(),
            })
            .collect(),
    };
    devices.tidy();
    devices
}

impl Devices {
    /// Sets kind of source and size of the disks from their files, whose paths imply no more than a first guess.
    pub(super) fn measure(&mut self, mut file_at: impl FnMut(&str) -> Option<Measured>) {
        let is_file = |disk: &&mut DomainDisk| {
            use StorageSource::{Block, Raw, Sparse};
            matches!(disk.source, Raw | Sparse | Block)
        };
        for disk in self.disks.iter_mut().filter(is_file) {
            let file = file_at(&disk.resource);
            disk.source = match (disk.source, file.map(|file| file.is_block_device)) {
                (StorageSource::Raw | StorageSource::Sparse, Some(true)) => StorageSource::Block,
                (StorageSource::Block, Some(false)) => file_source(&disk.format),
                (source, _) => source,
            };
            disk.set_file_size(file.map(|file| file.size).unwrap_or_default());
        }
    }

    /// Bounds the lists, and makes the disks' names unique.
    pub(super) fn tidy(&mut self) {
        self.disks.truncate(MAX_DEVICES);
        self.nics.truncate(MAX_DEVICES);
        // A name that is told stays; `a#2` may be one.
        let mut taken: HashSet<String> =
            self.disks.iter().map(|disk| disk.target.clone()).collect();
        let mut counts: HashMap<String, u32> = HashMap::new();
        for disk in &mut self.disks {
            let count = counts.entry(disk.target.clone()).or_default();
            *count += 1;
            while *count > 1 {
                let name = format!("{}#{count}", disk.target);
                if taken.insert(name.clone()) {
                    disk.target = name;
                    break;
                }
                *count += 1;
            }
        }
    }
}

/// The kind of source of an image in a regular file.
fn file_source(format: &str) -> StorageSource {
    if format == "raw" { StorageSource::Raw } else { StorageSource::Sparse }
}

/// A disk. `location`: `None` = empty, or not known. Whether a path leads to a device is guessed from it; [`Devices::measure`]
/// corrects the guess by the file's type.
pub(super) fn disk(
    name: &str,
    location: Option<Location>,
    format: &str,
    is_read_only: bool,
) -> DomainDisk {
    let source = match &location {
        None => StorageSource::Unknown,
        Some(Location::Network(_)) => StorageSource::Network,
        Some(Location::Other(_)) => StorageSource::Other,
        Some(Location::Local(path)) if path.starts_with("/dev/") => StorageSource::Block,
        Some(Location::Local(_)) => file_source(format),
    };
    let protocol = location.as_ref().and_then(Location::protocol).map(str::to_owned);
    DomainDisk {
        target: name.to_owned(),
        source,
        format: protocol.unwrap_or_else(|| format.to_owned()),
        resource: location.map(Location::into_text).unwrap_or_default(),
        access: if is_read_only { StorageAccess::ReadOnly } else { StorageAccess::ReadWrite },
        media: StorageMedia::HardDisk,
        bus: String::new(),
        size: DiskSize::default(),
        others: Vec::new(),
        chain_is_in_image: false,
        submission: Submission::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn firecrackers_file() {
        let devices = firecracker(
            br#"{"drives":[{"drive_id":"rootfs","path_on_host":"/i/root.ext4","is_root_device":true,"is_read_only":true}],
                "network-interfaces":[{"iface_id":"eth0","guest_mac":"06:00:AC:10:00:02","host_dev_name":"tap0"}]}"#,
        );
        assert_eq!(devices.disks[0].access, StorageAccess::ReadOnly);
        assert_eq!(devices.nics[0].mac, [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(firecracker(b"{"), Devices::default());
    }

    #[test]
    fn the_type_of_a_file_says_what_its_path_does_not() {
        let disk_at = |path, format| disk(path, Some(Location::of_name(path)), format, false);
        let mut devices = Devices {
            disks: vec![
                disk_at("/dev/shm/a", "raw"),
                disk_at("/dev/shm/b", "qcow2"),
                disk_at("/jail/c", "raw"),
                disk_at("/dev/vg/d", "raw"),
                disk_at("rbd:pool/e", "raw"),
            ],
            ..Devices::default()
        };
        let size = DiskSize { defined: Some(512), allocated: Some(512) };
        devices.measure(|path| {
            let is_block_device = path == "/jail/c";
            (path != "/dev/vg/d").then_some(Measured { is_block_device, size })
        });
        use StorageSource::{Block, Network, Raw, Sparse};
        let sources: Vec<_> = devices.disks.iter().map(|disk| disk.source).collect();
        assert_eq!(sources, [Raw, Sparse, Block, Block, Network]);
        let defined: Vec<_> = devices.disks.iter().map(|disk| disk.size.defined).collect();
        assert_eq!(defined, [Some(512), None, Some(512), None, None]);
    }

    #[test]
    fn names_are_made_unique_and_what_is_told_stays() {
        let unique = |names: &[&str]| {
            let disks = names.iter().map(|name| disk(name, None, "raw", false)).collect();
            let mut devices = Devices { disks, nics: Vec::new() };
            devices.tidy();
            devices.disks.into_iter().map(|disk| disk.target).collect::<Vec<_>>()
        };
        assert_eq!(unique(&["a", "a", "a"]), ["a", "a#2", "a#3"]);
        assert_eq!(unique(&["a", "a", "a#2"]), ["a", "a#3", "a#2"]);
        assert_eq!(unique(&["a#2", "a", "a", "a#2"]), ["a#2", "a", "a#3", "a#2#2"]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_configuration_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = firecracker(&bytes);
        }
    }
}

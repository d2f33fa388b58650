//! The disks and NICs on a VMM's command line or in its configuration file. Accepts any bytes.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{
    blockdev_graph::{Chain, Node, Nodes},
    options::{Fields, options},
    process::Measured,
};
use crate::{
    inventory::{
        Devices, DiskSize, DomainDisk, DomainNic, StorageAccess, StorageMedia, StorageSource,
        Submission, mac,
    },
    sources::storage_location::Location,
};

/// Most disks, and most NICs, of a VM; a longer list is truncated.
const MAX_DEVICES: usize = 4096;

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
                disk(&text(drive, "drive_id"), &text(drive, "path_on_host"), "raw", is_read_only)
            })
            .collect(),
        nics: list("network-interfaces")
            .iter()
            .map(|nic| DomainNic {
                mac: mac(&text(nic, "guest_mac")),
                device: Some(text(nic, "host_dev_name")),
                model: "virtio".to_owned(),
            })
            .collect(),
    };
    devices.tidy();
    devices
}

impl Devices {
    /// Sets kind of source and size of the disks from their files, whose paths imply no more than a first guess. The virtual
    /// size of an image with a format is left to its header.
    pub(super) fn measure(&mut self, file_at: impl Fn(&str) -> Option<Measured>) {
        for disk in &mut self.disks {
            let file = file_at(&disk.resource);
            disk.source = match (disk.source, file.map(|file| file.is_block_device)) {
                (StorageSource::Raw | StorageSource::Sparse, Some(true)) => StorageSource::Block,
                (StorageSource::Block, Some(false)) => file_source(&disk.format),
                (source, _) => source,
            };
            let is_plain = matches!(disk.source, StorageSource::Raw | StorageSource::Block);
            let size = file.map(|file| file.size).unwrap_or_default();
            disk.size = DiskSize { defined: size.defined.filter(|_| is_plain), ..size };
        }
    }

    /// Bounds the lists, and makes the disks' names unique.
    fn tidy(&mut self) {
        self.disks.truncate(MAX_DEVICES);
        self.nics.truncate(MAX_DEVICES);
        let mut seen = HashMap::new();
        for disk in &mut self.disks {
            let count = seen.entry(disk.target.clone()).or_insert(0_u32);
            *count += 1;
            if *count > 1 {
                disk.target = format!("{}#{count}", disk.target);
            }
        }
    }
}

/// The kind of source of an image in a regular file.
fn file_source(format: &str) -> StorageSource {
    if format == "raw" { StorageSource::Raw } else { StorageSource::Sparse }
}

fn is_on(value: Option<&str>) -> bool {
    matches!(value, Some("on" | "yes" | "true"))
}

/// Parses QEMU's `-drive`, `-blockdev` with the `-device` that uses it, and the short forms; `-netdev` and `-nic`.
pub(super) fn qemu(arguments: &[&str]) -> Devices {
    let parse = |value| Fields::parse_json(value).unwrap_or_else(|| Fields::parse(value));
    let all: Vec<(&str, Fields)> =
        options(arguments).into_iter().map(|(option, value)| (option, parse(value))).collect();
    let of = |wanted: &'static str| {
        all.iter().filter(move |(option, _)| *option == wanted).map(|(_, fields)| fields)
    };
    let nodes: Nodes<'_> =
        of("blockdev").filter_map(|node| Some((node.get("node-name")?, node))).collect();
    let mut devices = Devices::default();
    for (option, fields) in &all {
        match *option {
            "drive" if fields.get("if") != Some("pflash") => {
                devices.disks.extend(drive(fields, &nodes))
            }
            "hda" | "hdb" | "hdc" | "hdd" | "fda" | "fdb" | "cdrom" => {
                let mut disk = disk(option, fields.first(), "raw", *option == "cdrom");
                disk.chain_is_in_image = true;
                disk.media = match *option {
                    "cdrom" => StorageMedia::OpticalDisk,
                    "fda" | "fdb" => StorageMedia::FloppyDisk,
                    _ => StorageMedia::HardDisk,
                };
                devices.disks.push(disk);
            }
            "device" => {
                let driver = fields.get("driver").or_else(|| fields.get("")).unwrap_or_default();
                if let Some(node) = fields.get("drive").and_then(|name| nodes.get(name)) {
                    devices.disks.push(node_disk(fields, driver, node, &nodes));
                }
                if let Some(netdev) = fields.get("netdev") {
                    let backend = of("netdev").find(|backend| backend.get("id") == Some(netdev));
                    devices.nics.push(DomainNic {
                        mac: fields.get("mac").map(mac).unwrap_or_default(),
                        device: backend
                            .and_then(|backend| backend.get("ifname"))
                            .map(str::to_owned),
                        model: driver.split("-net").next().unwrap_or(driver).to_owned(),
                    });
                }
            }
            "nic" if fields.get("") != Some("none") => devices.nics.push(DomainNic {
                mac: fields
                    .get("mac")
                    .or_else(|| fields.get("macaddr"))
                    .map(mac)
                    .unwrap_or_default(),
                device: fields.get("ifname").map(str::to_owned),
                model: fields.get("model").unwrap_or_default().to_owned(),
            }),
            _ => {}
        }
    }
    devices.tidy();
    devices
}

/// The disk of a `-drive` option; `None`: an empty drive of fixed media.
fn drive(fields: &Fields, nodes: &Nodes<'_>) -> Option<DomainDisk> {
    let path = fields.get("file").or_else(|| fields.get("file.filename")).unwrap_or_default();
    let bus = fields.get("if").unwrap_or("ide");
    let name = fields
        .get("id")
        .map(str::to_owned)
        .unwrap_or_else(|| format!("{bus}{}", fields.get("index").unwrap_or("0")));
    let format = fields.get("format").unwrap_or("raw");
    let is_optical = fields.get("media") == Some("cdrom");
    if path.is_empty() && !is_optical && bus != "floppy" {
        return None;
    }
    let is_read_only =
        is_optical || is_on(fields.get("readonly").or_else(|| fields.get("read-only")));
    let mut disk = disk(&name, path, format, is_read_only);
    // QEMU probes the image's header where the format is not given, too.
    let chain = Chain::of(&Node::top(fields), nodes);
    let is_probed = fields.get("format") != Some("raw") && chain.others.is_empty();
    (disk.others, disk.chain_is_in_image) = (chain.others, chain.chain_is_in_image || is_probed);
    disk.submission = Submission::of(fields.get("aio").unwrap_or_default());
    disk.bus = if bus == "none" { String::new() } else { bus.to_owned() };
    disk.media = match bus {
        _ if is_optical => StorageMedia::OpticalDisk,
        "floppy" => StorageMedia::FloppyDisk,
        _ => StorageMedia::HardDisk,
    };
    Some(disk)
}

/// The disk that a `-device` option makes of a block node.
fn node_disk(device: &Fields, driver: &str, node: &Fields, nodes: &Nodes<'_>) -> DomainDisk {
    let node = Node::top(node);
    let path_to_file = node.file_path(nodes);
    let first = |key| path_to_file.iter().find_map(|node| node.get(key));
    let format_node = node.format_node(nodes);
    let format = if format_node.has_format() { format_node.get("driver") } else { None };
    let name = device.get("id").or_else(|| node.get("node-name")).unwrap_or_default();
    let is_optical = driver.contains("cd");
    let is_read_only = is_optical || is_on(first("read-only"));
    let path = node.filename(nodes).unwrap_or_default();
    let mut disk = disk(name, path, format.unwrap_or("raw"), is_read_only);
    disk.media = if is_optical { StorageMedia::OpticalDisk } else { StorageMedia::HardDisk };
    disk.submission = Submission::of(first("aio").unwrap_or_default());
    let chain = Chain::of(&node, nodes);
    (disk.others, disk.chain_is_in_image) = (chain.others, chain.chain_is_in_image);
    disk.bus = driver.split('-').next().unwrap_or_default().to_owned();
    disk
}

/// A disk. The kind of its source is guessed from its path (`rbd:…`, `/dev/…`, or a file); [`Devices::measure`] corrects the
/// guess by the file's type.
fn disk(name: &str, path: &str, format: &str, is_read_only: bool) -> DomainDisk {
    let location = Location::of_name(path);
    let source = location.source().unwrap_or_else(|| match path {
        "" => StorageSource::Unknown,
        path if path.starts_with("/dev/") => StorageSource::Block,
        _ => file_source(format),
    });
    DomainDisk {
        target: name.to_owned(),
        source,
        format: location.protocol().unwrap_or(format).to_owned(),
        resource: location.into_text(),
        access: if is_read_only { StorageAccess::ReadOnly } else { StorageAccess::ReadWrite },
        media: StorageMedia::HardDisk,
        bus: String::new(),
        size: DiskSize::default(),
        others: Vec::new(),
        chain_is_in_image: false,
        submission: Submission::Unknown,
    }
}

/// Parses Cloud Hypervisor's `--disk path=…,readonly=on,id=…` and `--net tap=…,mac=…`, each with any number of values.
pub(super) fn cloud_hypervisor(arguments: &[&str]) -> Devices {
    let mut devices = Devices::default();
    let mut option = "";
    for argument in arguments {
        if let Some(name) = argument.strip_prefix("--") {
            option = name;
            continue;
        }
        let fields = Fields::parse(argument);
        match option {
            "disk" => {
                let name = fields
                    .get("id")
                    .map_or_else(|| format!("disk{}", devices.disks.len()), str::to_owned);
                let path = fields.get("path").unwrap_or_default();
                let mut disk = disk(&name, path, "raw", is_on(fields.get("readonly")));
                disk.bus = "virtio".to_owned();
                devices.disks.push(disk);
            }
            "net" => devices.nics.push(DomainNic {
                mac: fields.get("mac").map(mac).unwrap_or_default(),
                device: fields.get("tap").map(str::to_owned),
                model: "virtio".to_owned(),
            }),
            _ => {}
        }
    }
    devices.tidy();
    devices
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(line: &str) -> Vec<&str> {
        line.split(' ').filter(|word| !word.is_empty()).collect()
    }

    fn seen(
        devices: &Devices,
    ) -> Vec<(&str, StorageSource, &str, &str, StorageAccess, StorageMedia)> {
        devices
            .disks
            .iter()
            .map(|d| (&*d.target, d.source, &*d.format, &*d.resource, d.access, d.media))
            .collect()
    }

    #[test]
    fn qemu_as_proxmox_starts_it() {
        let devices = qemu(&words(
            "-drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF_CODE.fd \
                 -drive file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring \
                 -device scsi-hd,bus=scsihw0.0,drive=drive-scsi0,id=scsi0,bootindex=100 \
                 -drive if=none,id=drive-ide2,media=cdrom,aio=io_uring \
                 -drive file=rbd:pool/vm-100-disk-1:conf=/etc/ceph.conf,if=none,id=drive-scsi1,format=raw \
                 -netdev type=tap,id=net0,ifname=tap100i0,script=/usr/libexec/qemu-server/pve-bridge,vhost=on \
                 -device virtio-net-pci,mac=BC:24:11:AA:BB:CC,netdev=net0,bus=pci.0,id=net0",
        ));
        use StorageAccess::{ReadOnly, ReadWrite};
        use StorageMedia::{HardDisk, OpticalDisk};
        assert_eq!(
            seen(&devices),
            [
                (
                    "drive-scsi0",
                    StorageSource::Block,
                    "raw",
                    "/dev/pve/vm-100-disk-0",
                    ReadWrite,
                    HardDisk
                ),
                ("drive-ide2", StorageSource::Unknown, "raw", "", ReadOnly, OpticalDisk),
                (
                    "drive-scsi1",
                    StorageSource::Network,
                    "rbd",
                    "rbd:pool/vm-100-disk-1",
                    ReadWrite,
                    HardDisk
                ),
            ]
        );
        assert_eq!(devices.nics.len(), 1);
        assert_eq!(devices.nics[0].device.as_deref(), Some("tap100i0"));
        assert_eq!(devices.nics[0].mac, [0xbc, 0x24, 0x11, 0xaa, 0xbb, 0xcc]);
        assert_eq!(devices.nics[0].model, "virtio");
    }

    #[test]
    fn qemu_with_nodes_in_json() {
        let devices = qemu(&[
            "-blockdev",
            r#"{"driver":"file","filename":"/i/a,b.qcow2","node-name":"libvirt-1-storage"}"#,
            "-blockdev",
            r#"{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2","file":"libvirt-1-storage"}"#,
            "-device",
            r#"{"driver":"virtio-blk-pci","drive":"libvirt-1-format","id":"virtio-disk0"}"#,
            "-cdrom",
            "/i/boot.iso",
        ]);
        assert_eq!(devices.disks[0].target, "virtio-disk0");
        assert_eq!(
            (&*devices.disks[0].resource, &*devices.disks[0].format),
            ("/i/a,b.qcow2", "qcow2")
        );
        assert_eq!(devices.disks[0].source, StorageSource::Sparse);
        assert_eq!(devices.disks[1].media, StorageMedia::OpticalDisk);
    }

    #[test]
    fn qemu_as_proxmox_starts_it_since_version_9() {
        let devices = qemu(&[
            "-blockdev",
            r#"{"driver":"throttle","file":{"cache":{"direct":true,"no-flush":false},"driver":"raw","file":{"aio":"io_uring","cache":{"direct":true,"no-flush":false},"driver":"host_device","filename":"/dev/pve/vm-100-disk-0","node-name":"e1"},"node-name":"f1"},"node-name":"drive-scsi0","throttle-group":"throttle-drive-scsi0"}"#,
            "-device",
            "scsi-hd,bus=scsihw0.0,channel=0,scsi-id=0,lun=0,drive=drive-scsi0,id=scsi0,write-cache=on",
            "-blockdev",
            r#"{"driver":"throttle","file":{"driver":"qcow2","backing":{"driver":"qcow2","file":{"driver":"file","filename":"/i/snap.qcow2"}},"file":{"aio":"threads","driver":"file","filename":"/i/vm.qcow2"}},"node-name":"drive-scsi1"}"#,
            "-device",
            "scsi-hd,bus=scsihw0.0,drive=drive-scsi1,id=scsi1",
            "-blockdev",
            r#"{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"/i/whole.qcow2"},"node-name":"drive-scsi2"}"#,
            "-device",
            "scsi-hd,bus=scsihw0.0,drive=drive-scsi2,id=scsi2",
        ]);
        let of = |at: usize| {
            let DomainDisk { target, source, format, resource, submission, .. } =
                &devices.disks[at];
            (&**target, *source, &**format, &**resource, *submission)
        };
        assert_eq!(
            of(0),
            ("scsi0", StorageSource::Block, "raw", "/dev/pve/vm-100-disk-0", Submission::IoUring)
        );
        assert_eq!(
            of(1),
            ("scsi1", StorageSource::Sparse, "qcow2", "/i/vm.qcow2", Submission::Threads)
        );
        assert_eq!(devices.disks[1].others, ["/i/snap.qcow2"]);
        // The last image may have a backing file that only its header names, unless `backing` is null.
        let open: Vec<_> = devices.disks.iter().map(|disk| disk.chain_is_in_image).collect();
        assert_eq!(open, [false, true, false]);
    }

    #[test]
    fn a_drive_names_its_chain_or_leaves_it_to_the_header() {
        let devices = qemu(&words(
            "-drive file=/i/a.qcow2,format=qcow2,id=a -drive file=/i/b,id=b \
                 -drive file=/i/c,format=raw,id=c -hda /i/d \
                 -drive file=/i/e,format=qcow2,backing.driver=raw,backing.file.filename=/i/f,id=e",
        ));
        let open: Vec<_> = devices.disks.iter().map(|disk| disk.chain_is_in_image).collect();
        assert_eq!(open, [true, true, false, true, false]);
        assert_eq!(devices.disks[4].others, ["/i/f"]);
    }

    #[test]
    fn other_vmms() {
        let devices = cloud_hypervisor(&words(
            "--disk path=/i/a.raw path=/dev/vg/b,readonly=on,id=b --net tap=tap0,mac=52:54:00:00:00:01",
        ));
        assert_eq!(devices.disks.len(), 2);
        assert_eq!(
            (&*devices.disks[1].target, devices.disks[1].source),
            ("b", StorageSource::Block)
        );
        assert_eq!(devices.nics[0].device.as_deref(), Some("tap0"));
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
        let mut devices = qemu(&words(
            "-drive file=/dev/shm/a,format=raw,id=a -drive file=/dev/shm/b,format=qcow2,id=b \
                 -drive file=/jail/c,format=raw,id=c -drive file=/dev/vg/d,format=raw,id=d \
                 -drive file=rbd:pool/e,format=raw,id=e",
        ));
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
    fn a_resource_shows_no_credential() {
        let devices = qemu(&[
            "-drive",
            "file=rbd:pool/vm-1:id=admin:key=secret==:auth_supported=cephx,format=raw,id=a",
            "-drive",
            "file=iscsi://chap%secret@10.0.0.2/iqn.2020-01.x:t/1,format=raw,id=b",
            "-drive",
            "file=json:{\"driver\":\"https\",,\"url\":\"https://h/a\",,\"cookie\":\"secret\"},id=c",
            "-hda",
            "https://user:secret@host/image.qcow2",
        ]);
        assert!(!format!("{devices:?}").contains("secret"), "{devices:?}");
        assert_eq!(devices.disks[1].resource, "iscsi://10.0.0.2/iqn.2020-01.x:t/1");
    }

    #[test]
    fn names_are_made_unique() {
        let devices = qemu(&words("-drive file=a,if=virtio -drive file=b,if=virtio"));
        assert_eq!(
            devices.disks.iter().map(|disk| &*disk.target).collect::<Vec<_>>(),
            ["virtio0", "virtio0#2"]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_arguments_panic(arguments in prop::collection::vec("(-(drive|blockdev|device|netdev|nic|hda))|[a-z=,:0-9é{}\"]{0,16}", 0..8)) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _ = (qemu(&arguments), cloud_hypervisor(&arguments));
        }

        #[test]
        fn no_configuration_panics(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = firecracker(&bytes);
        }
    }
}

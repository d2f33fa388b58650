//! The disks and network interfaces that a VMM's command line names. Total over any octets.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{
    blockdev_graph::{Chain, Node, Nodes},
    command_line::Vmm,
    options::{Fields, fields, get, object, options},
};
use crate::inventory::{
    Devices, DiskSize, DomainDisk, DomainNic, StorageAccess, StorageMedia, StorageSource,
    Submission, mac,
};

/// No VM has more; a longer list is cut.
const MAX_DEVICES: usize = 4096;

/// Reads the arguments after the program's name.
pub(super) fn parse(vmm: Vmm, arguments: &[&str]) -> Devices {
    let mut devices = match vmm {
        Vmm::Qemu => qemu(arguments),
        Vmm::CloudHypervisor => cloud_hypervisor(arguments),
        Vmm::Firecracker | Vmm::Other => Devices::default(),
    };
    devices.tidy();
    devices
}

/// Reads what Firecracker was configured with (docs/getting-started.md, `--config-file`).
pub(super) fn firecracker(config: &[u8]) -> Devices {
    let Ok(config) = serde_json::from_slice::<Json>(config) else { return Devices::default() };
    let list = |name: &str| config.get(name).and_then(Json::as_array).cloned().unwrap_or_default();
    let text =
        |of: &Json, name: &str| of.get(name).and_then(Json::as_str).unwrap_or_default().to_owned();
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
    /// Notes the sizes of the files that the VMM has open. What a guest sees of an image with a format, its header tells.
    pub(super) fn measure(&mut self, size_of: impl Fn(&str) -> Option<DiskSize>) {
        for disk in &mut self.disks {
            let size = size_of(&disk.resource).unwrap_or_default();
            let is_plain = matches!(disk.source, StorageSource::Raw | StorageSource::Block);
            disk.size = DiskSize { defined: size.defined.filter(|_| is_plain), ..size };
        }
    }

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

fn is_on(value: Option<&str>) -> bool {
    matches!(value, Some("on" | "yes" | "true"))
}

/// `-drive`, `-blockdev` with the `-device` that uses it, the short forms; `-netdev` and `-nic`.
fn qemu(arguments: &[&str]) -> Devices {
    let told: Vec<(&str, Fields)> = options(arguments)
        .into_iter()
        .map(|(option, value)| (option, object(value).unwrap_or_else(|| fields(value))))
        .collect();
    let of = |wanted: &'static str| {
        told.iter().filter(move |(option, _)| *option == wanted).map(|(_, fields)| fields)
    };
    let nodes: Nodes<'_> =
        of("blockdev").filter_map(|node| Some((get(node, "node-name")?, node))).collect();
    let mut devices = Devices::default();
    for (option, fields) in &told {
        match *option {
            "drive" if get(fields, "if") != Some("pflash") => {
                devices.disks.extend(drive(fields, &nodes))
            }
            "hda" | "hdb" | "hdc" | "hdd" | "fda" | "fdb" | "cdrom" => {
                let path = fields.first().map_or("", |(_, value)| value);
                let mut disk = disk(option, path, "raw", *option == "cdrom");
                disk.chain_is_in_image = true;
                disk.media = match *option {
                    "cdrom" => StorageMedia::OpticalDisk,
                    "fda" | "fdb" => StorageMedia::FloppyDisk,
                    _ => StorageMedia::HardDisk,
                };
                devices.disks.push(disk);
            }
            "device" => {
                let driver = get(fields, "driver").or_else(|| get(fields, "")).unwrap_or_default();
                if let Some(node) = get(fields, "drive").and_then(|name| nodes.get(name)) {
                    devices.disks.push(node_disk(fields, driver, node, &nodes));
                }
                if let Some(netdev) = get(fields, "netdev") {
                    let backend = of("netdev").find(|backend| get(backend, "id") == Some(netdev));
                    devices.nics.push(DomainNic {
                        mac: get(fields, "mac").map(mac).unwrap_or_default(),
                        device: backend
                            .and_then(|backend| get(backend, "ifname"))
                            .map(str::to_owned),
                        model: driver.split("-net").next().unwrap_or(driver).to_owned(),
                    });
                }
            }
            "nic" if get(fields, "") != Some("none") => devices.nics.push(DomainNic {
                mac: get(fields, "mac")
                    .or_else(|| get(fields, "macaddr"))
                    .map(mac)
                    .unwrap_or_default(),
                device: get(fields, "ifname").map(str::to_owned),
                model: get(fields, "model").unwrap_or_default().to_owned(),
            }),
            _ => {}
        }
    }
    devices
}

fn drive(fields: &Fields, nodes: &Nodes<'_>) -> Option<DomainDisk> {
    let path = get(fields, "file").or_else(|| get(fields, "file.filename")).unwrap_or_default();
    let bus = get(fields, "if").unwrap_or("ide");
    let name = get(fields, "id")
        .map(str::to_owned)
        .unwrap_or_else(|| format!("{bus}{}", get(fields, "index").unwrap_or("0")));
    let format = get(fields, "format").unwrap_or("raw");
    let is_optical = get(fields, "media") == Some("cdrom");
    if path.is_empty() && !is_optical && bus != "floppy" {
        return None;
    }
    let is_read_only =
        is_optical || is_on(get(fields, "readonly").or_else(|| get(fields, "read-only")));
    let mut disk = disk(&name, path, format, is_read_only);
    // QEMU looks into the image where the format is not told, too.
    let chain = Chain::of(&Node::whole(fields), nodes);
    let is_probed = get(fields, "format") != Some("raw") && chain.others.is_empty();
    (disk.others, disk.chain_is_in_image) = (chain.others, chain.chain_is_in_image || is_probed);
    disk.submission = Submission::of(get(fields, "aio").unwrap_or_default());
    disk.bus = if bus == "none" { String::new() } else { bus.to_owned() };
    disk.media = match bus {
        _ if is_optical => StorageMedia::OpticalDisk,
        "floppy" => StorageMedia::FloppyDisk,
        _ => StorageMedia::HardDisk,
    };
    Some(disk)
}

/// The disk that a device makes of a node.
fn node_disk(device: &Fields, driver: &str, node: &Fields, nodes: &Nodes<'_>) -> DomainDisk {
    let node = Node::whole(node);
    let own = node.to_file(nodes);
    let first = |key| own.iter().find_map(|node| node.get(key));
    let of_format = node.of_format(nodes);
    let format = if of_format.has_format() { of_format.get("driver") } else { None };
    let name = get(device, "id").or_else(|| node.get("node-name")).unwrap_or_default();
    let is_optical = driver.contains("cd");
    let is_read_only = is_optical || is_on(first("read-only"));
    let path = node.path(nodes).unwrap_or_default();
    let mut disk = disk(name, path, format.unwrap_or("raw"), is_read_only);
    disk.media = if is_optical { StorageMedia::OpticalDisk } else { StorageMedia::HardDisk };
    disk.submission = Submission::of(first("aio").unwrap_or_default());
    let chain = Chain::of(&node, nodes);
    (disk.others, disk.chain_is_in_image) = (chain.others, chain.chain_is_in_image);
    disk.bus = driver.split('-').next().unwrap_or_default().to_owned();
    disk
}

/// A disk whose source is told apart by its path alone: `rbd:…`, `/dev/…`, or a file.
fn disk(name: &str, path: &str, format: &str, is_read_only: bool) -> DomainDisk {
    let protocol = path.split_once(':').map(|(protocol, _)| protocol);
    let network = protocol.filter(|name| {
        matches!(*name, "rbd" | "nbd" | "iscsi" | "http" | "https" | "ssh" | "gluster" | "sheepdog")
    });
    let source = match (path, network, format) {
        ("", ..) => StorageSource::Unknown,
        (_, Some(_), _) => StorageSource::Network,
        (path, ..) if path.starts_with("/dev/") => StorageSource::Block,
        (.., "raw") => StorageSource::Raw,
        _ => StorageSource::Sparse,
    };
    DomainDisk {
        target: name.to_owned(),
        source,
        format: network.unwrap_or(format).to_owned(),
        resource: path.to_owned(),
        access: if is_read_only { StorageAccess::ReadOnly } else { StorageAccess::ReadWrite },
        media: StorageMedia::HardDisk,
        bus: String::new(),
        size: DiskSize::default(),
        others: Vec::new(),
        chain_is_in_image: false,
        submission: Submission::Unknown,
    }
}

/// `--disk path=…,readonly=on,id=…` and `--net tap=…,mac=…`, each with any number of values.
fn cloud_hypervisor(arguments: &[&str]) -> Devices {
    let mut devices = Devices::default();
    let mut option = "";
    for argument in arguments {
        if let Some(name) = argument.strip_prefix("--") {
            option = name;
            continue;
        }
        let fields = fields(argument);
        match option {
            "disk" => {
                let name = get(&fields, "id")
                    .map_or_else(|| format!("disk{}", devices.disks.len()), str::to_owned);
                let path = get(&fields, "path").unwrap_or_default();
                let mut disk = disk(&name, path, "raw", is_on(get(&fields, "readonly")));
                disk.bus = "virtio".to_owned();
                devices.disks.push(disk);
            }
            "net" => devices.nics.push(DomainNic {
                mac: get(&fields, "mac").map(mac).unwrap_or_default(),
                device: get(&fields, "tap").map(str::to_owned),
                model: "virtio".to_owned(),
            }),
            _ => {}
        }
    }
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
        let told = parse(
            Vmm::Qemu,
            &words(
                "-drive if=pflash,unit=0,format=raw,readonly=on,file=/usr/share/OVMF_CODE.fd \
                 -drive file=/dev/pve/vm-100-disk-0,if=none,id=drive-scsi0,format=raw,cache=none,aio=io_uring \
                 -device scsi-hd,bus=scsihw0.0,drive=drive-scsi0,id=scsi0,bootindex=100 \
                 -drive if=none,id=drive-ide2,media=cdrom,aio=io_uring \
                 -drive file=rbd:pool/vm-100-disk-1:conf=/etc/ceph.conf,if=none,id=drive-scsi1,format=raw \
                 -netdev type=tap,id=net0,ifname=tap100i0,script=/usr/libexec/qemu-server/pve-bridge,vhost=on \
                 -device virtio-net-pci,mac=BC:24:11:AA:BB:CC,netdev=net0,bus=pci.0,id=net0",
            ),
        );
        use StorageAccess::{ReadOnly, ReadWrite};
        use StorageMedia::{HardDisk, OpticalDisk};
        assert_eq!(
            seen(&told),
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
                    "rbd:pool/vm-100-disk-1:conf=/etc/ceph.conf",
                    ReadWrite,
                    HardDisk
                ),
            ]
        );
        assert_eq!(told.nics.len(), 1);
        assert_eq!(told.nics[0].device.as_deref(), Some("tap100i0"));
        assert_eq!(told.nics[0].mac, [0xbc, 0x24, 0x11, 0xaa, 0xbb, 0xcc]);
        assert_eq!(told.nics[0].model, "virtio");
    }

    #[test]
    fn qemu_with_nodes_in_json() {
        let told = parse(
            Vmm::Qemu,
            &[
                "-blockdev",
                r#"{"driver":"file","filename":"/i/a,b.qcow2","node-name":"libvirt-1-storage"}"#,
                "-blockdev",
                r#"{"node-name":"libvirt-1-format","read-only":false,"driver":"qcow2","file":"libvirt-1-storage"}"#,
                "-device",
                r#"{"driver":"virtio-blk-pci","drive":"libvirt-1-format","id":"virtio-disk0"}"#,
                "-cdrom",
                "/i/boot.iso",
            ],
        );
        assert_eq!(told.disks[0].target, "virtio-disk0");
        assert_eq!((&*told.disks[0].resource, &*told.disks[0].format), ("/i/a,b.qcow2", "qcow2"));
        assert_eq!(told.disks[0].source, StorageSource::Sparse);
        assert_eq!(told.disks[1].media, StorageMedia::OpticalDisk);
    }

    #[test]
    fn qemu_as_proxmox_starts_it_since_version_9() {
        let told = parse(
            Vmm::Qemu,
            &[
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
            ],
        );
        let of = |at: usize| {
            let DomainDisk { target, source, format, resource, submission, .. } = &told.disks[at];
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
        assert_eq!(told.disks[1].others, ["/i/snap.qcow2"]);
        // The last of a chain may be based on another, unless that is ruled out.
        let open: Vec<_> = told.disks.iter().map(|disk| disk.chain_is_in_image).collect();
        assert_eq!(open, [false, true, false]);
    }

    #[test]
    fn a_drive_tells_its_chain_or_leaves_it_to_the_image() {
        let told = parse(
            Vmm::Qemu,
            &words(
                "-drive file=/i/a.qcow2,format=qcow2,id=a -drive file=/i/b,id=b \
                 -drive file=/i/c,format=raw,id=c -hda /i/d \
                 -drive file=/i/e,format=qcow2,backing.driver=raw,backing.file.filename=/i/f,id=e",
            ),
        );
        let open: Vec<_> = told.disks.iter().map(|disk| disk.chain_is_in_image).collect();
        assert_eq!(open, [true, true, false, true, false]);
        assert_eq!(told.disks[4].others, ["/i/f"]);
    }

    #[test]
    fn other_vmms() {
        let told = parse(
            Vmm::CloudHypervisor,
            &words(
                "--disk path=/i/a.raw path=/dev/vg/b,readonly=on,id=b --net tap=tap0,mac=52:54:00:00:00:01",
            ),
        );
        assert_eq!(told.disks.len(), 2);
        assert_eq!((&*told.disks[1].target, told.disks[1].source), ("b", StorageSource::Block));
        assert_eq!(told.nics[0].device.as_deref(), Some("tap0"));
        let told = firecracker(
            br#"{"drives":[{"drive_id":"rootfs","path_on_host":"/i/root.ext4","is_root_device":true,"is_read_only":true}],
                "network-interfaces":[{"iface_id":"eth0","guest_mac":"06:00:AC:10:00:02","host_dev_name":"tap0"}]}"#,
        );
        assert_eq!(told.disks[0].access, StorageAccess::ReadOnly);
        assert_eq!(told.nics[0].mac, [6, 0, 0xac, 0x10, 0, 2]);
        assert_eq!(firecracker(b"{"), Devices::default());
    }

    #[test]
    fn names_are_told_apart() {
        let told = parse(Vmm::Qemu, &words("-drive file=a,if=virtio -drive file=b,if=virtio"));
        assert_eq!(
            told.disks.iter().map(|disk| &*disk.target).collect::<Vec<_>>(),
            ["virtio0", "virtio0#2"]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_arguments_panic(arguments in prop::collection::vec("(-(drive|blockdev|device|netdev|nic|hda))|[a-z=,:0-9é{}\"]{0,16}", 0..8)) {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let _ = (parse(Vmm::Qemu, &arguments), parse(Vmm::CloudHypervisor, &arguments));
        }

        #[test]
        fn no_configuration_panics(octets in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = firecracker(&octets);
        }
    }
}

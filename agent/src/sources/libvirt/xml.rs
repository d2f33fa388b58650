//! Parses a domain's XML (<https://libvirt.org/formatdomain.html>). The text is not trusted: it is bounded, and an element
//! that is not understood is left out.

use roxmltree::{Document, Node, ParsingOptions};

use crate::{
    inventory::{
        DiskSize, DomainDisk, DomainNic, Memory, StorageAccess, StorageMedia, StorageSource,
        Submission, mac,
    },
    sources::storage_location::Location,
};

/// Longest text in bytes, and most nodes in it, that are parsed. A domain with a thousand disks has fewer.
const MAX_LEN: usize = 4 << 20;
const MAX_NODES: u32 = 200_000;
/// Most images of a disk that are kept.
const MAX_CHAIN: usize = 200;

/// Values present in the XML; what is absent stays `None` or empty.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct DomainXml {
    /// libosinfo's id of the guest's operating system.
    pub(crate) os: String,
    pub(crate) vcpus: Option<u32>,
    pub(crate) max_vcpus: Option<u32>,
    /// Ids of the vCPUs that are online, where the XML lists them.
    pub(crate) vcpu_ids: Vec<u32>,
    pub(crate) memory: Memory,
    pub(crate) disks: Vec<DomainDisk>,
    pub(crate) nics: Vec<DomainNic>,
}

/// Why a domain's XML was not parsed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XmlError {
    /// Longer than [`MAX_LEN`].
    #[error("its XML has {0} bytes, more than kvmeter parses")]
    TooLong(usize),
    /// Not XML, or XML with a DTD.
    #[error("its XML is not understood: {0}")]
    Malformed(#[from] roxmltree::Error),
}

/// Parses a domain's XML, or the status in which a driver keeps it.
pub(crate) fn parse(text: &str) -> Result<DomainXml, XmlError> {
    if text.len() > MAX_LEN {
        return Err(XmlError::TooLong(text.len()));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..Default::default() };
    let document = Document::parse_with_options(text, options)?;
    let root = document.root_element();
    let status = Some(root).filter(|root| root.has_tag_name("domstatus"));
    let domain = status.and_then(|status| child(status, "domain")).unwrap_or(root);
    let vcpu = child(domain, "vcpu");
    let max_vcpus = vcpu.and_then(|node| number(node.text()?));
    let devices = child(domain, "devices");
    let of_kind = |name: &'static str| {
        devices
            .into_iter()
            .flat_map(|devices| devices.children())
            .filter(move |node| node.has_tag_name(name))
    };
    let memory = child(domain, "memory").and_then(bytes);
    Ok(DomainXml {
        os: operating_system(domain).unwrap_or_default(),
        vcpus: vcpu.and_then(|node| number(node.attribute("current")?)).or(max_vcpus),
        max_vcpus,
        vcpu_ids: vcpu_ids(domain),
        memory: Memory {
            current: child(domain, "currentMemory").and_then(bytes).or(memory),
            min: child(domain, "memtune")
                .and_then(|node| child(node, "min_guarantee"))
                .and_then(bytes),
            max: child(domain, "maxMemory").and_then(bytes).or(memory),
        },
        disks: of_kind("disk").filter_map(disk).collect(),
        nics: of_kind("interface").map(interface).collect(),
    })
}

fn child<'a>(node: Node<'a, 'a>, name: &str) -> Option<Node<'a, 'a>> {
    node.children().find(|child| child.has_tag_name(name))
}

fn number(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

/// The size in an element, in bytes. Units as in libvirt's virScaleInteger(); KiB where none is given.
fn bytes(node: Node<'_, '_>) -> Option<u64> {
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    node.text()?.trim().parse::<u64>().ok()?.checked_mul(unit)
}

fn operating_system(domain: Node<'_, '_>) -> Option<String> {
    // The namespace ends with a version.
    let is_libosinfo = |node: &Node<'_, '_>| {
        let name = node.tag_name();
        name.name() == "os"
            && name.namespace().is_some_and(|name| name.starts_with("http://libosinfo.org/"))
    };
    let os = child(domain, "metadata")?.descendants().find(is_libosinfo)?;
    Some(os.attribute("id")?.to_owned())
}

fn vcpu_ids(domain: Node<'_, '_>) -> Vec<u32> {
    let Some(vcpus) = child(domain, "vcpus") else { return Vec::new() };
    vcpus
        .children()
        .filter(|node| node.has_tag_name("vcpu") && node.attribute("enabled") == Some("yes"))
        .filter_map(|node| number(node.attribute("id")?))
        .collect()
}

fn disk(node: Node<'_, '_>) -> Option<DomainDisk> {
    let target = child(node, "target")?;
    let source = child(node, "source");
    let format = child(node, "driver").and_then(|driver| driver.attribute("type")).unwrap_or("raw");
    let attribute =
        |name: &str| source.and_then(|source| source.attribute(name)).unwrap_or_default();
    let path = |name: &str| Location::of_path(attribute(name)).into_text();
    let kind = node.attribute("type").unwrap_or_default();
    let (source_kind, format, resource) = match kind {
        "file" if attribute("file").is_empty() => (StorageSource::Unknown, "", String::new()),
        "file" if format == "raw" => (StorageSource::Raw, format, path("file")),
        "file" => (StorageSource::Sparse, format, path("file")),
        "block" => (StorageSource::Block, format, path("dev")),
        "network" => (StorageSource::Network, attribute("protocol"), address(source)),
        "volume" => {
            let volume = format!("{}/{}", attribute("pool"), attribute("volume"));
            (StorageSource::Other, format, Location::of_path(&volume).into_text())
        }
        "dir" => (StorageSource::Other, format, path("dir")),
        _ => (StorageSource::Other, kind, String::new()),
    };
    let media = match node.attribute("device").unwrap_or("disk") {
        "disk" | "lun" => StorageMedia::HardDisk,
        "cdrom" => StorageMedia::OpticalDisk,
        "floppy" => StorageMedia::FloppyDisk,
        _ => StorageMedia::Other,
    };
    let is_read_only = child(node, "readonly").is_some() || media == StorageMedia::OpticalDisk;
    Some(DomainDisk {
        target: target.attribute("dev")?.to_owned(),
        source: source_kind,
        format: format.to_owned(),
        resource,
        access: if is_read_only { StorageAccess::ReadOnly } else { StorageAccess::ReadWrite },
        media,
        bus: target.attribute("bus").unwrap_or_default().to_owned(),
        // Queried separately.
        size: DiskSize::default(),
        others: others(node),
        chain_is_in_image: false,
        submission: Submission::of(
            child(node, "driver").and_then(|driver| driver.attribute("io")).unwrap_or_default(),
        ),
    })
}

/// The images of a disk other than its top one, at any depth.
fn others(disk: Node<'_, '_>) -> Vec<String> {
    const OTHERS: [&str; 3] = ["backingStore", "dataStore", "mirror"];
    let is_other = |node: &Node<'_, '_>| OTHERS.iter().any(|name| node.has_tag_name(*name));
    disk.descendants()
        .filter(is_other)
        .filter_map(|node| child(node, "source"))
        .filter_map(|source| source.attribute("file").or_else(|| source.attribute("dev")))
        .take(MAX_CHAIN)
        .map(str::to_owned)
        .collect()
}

/// The location of a network disk, without credentials: `rbd:pool/image@host:6789`.
fn address(source: Option<Node<'_, '_>>) -> String {
    let Some(source) = source else { return String::new() };
    let attribute = |name| source.attribute(name).unwrap_or_default();
    let hosts: Vec<String> = source
        .children()
        .filter(|node| node.has_tag_name("host"))
        .map(|host| {
            match (host.attribute("name"), host.attribute("port"), host.attribute("socket")) {
                (Some(name), Some(port), _) => format!("{name}:{port}"),
                (Some(name), None, _) => name.to_owned(),
                (None, _, socket) => socket.unwrap_or_default().to_owned(),
            }
        })
        .collect();
    Location::of_service(attribute("protocol"), attribute("name"), &hosts).into_text()
}

fn interface(node: Node<'_, '_>) -> DomainNic {
    let attribute = |element, name| child(node, element).and_then(|node| node.attribute(name));
    DomainNic {
        mac: attribute("mac", "address").map(mac).unwrap_or_default(),
        device: attribute("target", "dev").map(str::to_owned),
        unnamed: None,
        model: attribute("model", "type").unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_xml_of_a_domain() {
        let found = parse(
            r#"<domain type='kvm' id='3'>
              <name>web</name><uuid>2f5bd8a2-6c1c-4a3b-9d0e-0123456789ab</uuid>
              <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0">
                <libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
              <maxMemory slots='4' unit='KiB'>8388608</maxMemory>
              <memory unit='KiB'>4194304</memory><currentMemory unit='GiB'>2</currentMemory>
              <memtune><min_guarantee unit='MiB'>512</min_guarantee></memtune>
              <vcpu placement='static' current='2'>4</vcpu>
              <vcpus><vcpu id='0' enabled='yes'/><vcpu id='1' enabled='no'/><vcpu id='2' enabled='yes'/></vcpus>
              <devices>
                <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/i/web.qcow2'/>
                  <target dev='vda' bus='virtio'/></disk>
                <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/vg/web'/>
                  <target dev='sda' bus='scsi'/><readonly/></disk>
                <disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>
                <disk type='network' device='disk'><source protocol='rbd' name='pool/image'>
                  <host name='mon1' port='6789'/><host name='mon2'/></source><target dev='vdb' bus='virtio'/></disk>
                <disk type='file' device='disk'><source file='/no/target'/></disk>
                <interface type='bridge'><mac address='52:54:00:aa:bb:0c'/><target dev='vnet0'/>
                  <model type='virtio'/></interface>
                <interface type='user'><mac address='52:54:zz'/></interface>
              </devices></domain>"#,
        )
        .unwrap();
        assert_eq!(found.os, "http://debian.org/debian/12");
        assert_eq!(
            (found.vcpus, found.max_vcpus, &found.vcpu_ids[..]),
            (Some(2), Some(4), &[0, 2][..])
        );
        let memory = Memory { current: Some(2 << 30), min: Some(512 << 20), max: Some(8 << 30) };
        assert_eq!(found.memory, memory);
        let seen: Vec<_> = found
            .disks
            .iter()
            .map(|disk| (&*disk.target, disk.source, &*disk.format, &*disk.resource, disk.access))
            .collect();
        assert_eq!(
            seen,
            [
                ("vda", StorageSource::Sparse, "qcow2", "/i/web.qcow2", StorageAccess::ReadWrite),
                ("sda", StorageSource::Block, "raw", "/dev/vg/web", StorageAccess::ReadOnly),
                ("hda", StorageSource::Unknown, "", "", StorageAccess::ReadOnly),
                (
                    "vdb",
                    StorageSource::Network,
                    "rbd",
                    "rbd:pool/image@mon1:6789,mon2",
                    StorageAccess::ReadWrite
                ),
            ]
        );
        assert_eq!(found.disks[2].media, StorageMedia::OpticalDisk);
        assert_eq!(found.nics[0].mac, [0x52, 0x54, 0, 0xaa, 0xbb, 0x0c]);
        assert_eq!(found.nics[0].device.as_deref(), Some("vnet0"));
        assert!(found.nics[1].mac.is_empty());
    }

    #[test]
    fn a_status_says_what_its_domain_says() {
        let domain = "<domain type='kvm' id='3'><name>web</name><vcpu>2</vcpu><devices><disk type='file'>\
                      <source file='/i/a'/><target dev='vda'/></disk></devices></domain>";
        let status = format!(
            "<!-- edited by libvirt -->\n<domstatus state='running' pid='7'><vcpus><vcpu id='0' pid='8'/></vcpus>\
             {domain}</domstatus>"
        );
        let found = parse(domain).unwrap();
        assert_eq!((found.vcpus, found.disks.len()), (Some(2), 1));
        assert_eq!(parse(&status).unwrap(), found);
    }

    #[test]
    fn a_source_shows_no_credential() {
        let found = parse(
            r#"<domain><devices>
                <disk type='network'><source protocol='rbd' name='pool/a:id=u:key=secret'><auth username='secret'/>
                  <host name='u:secret@mon1' port='6789'/></source><target dev='vda'/></disk>
                <disk type='network'><source protocol='https' name='/a?token=secret' query='t=secret'>
                  <cookies><cookie name='c'>secret</cookie></cookies><host name='h'/></source><target dev='vdb'/></disk>
                <disk type='file'><source file='https://u:secret@h/a'/><target dev='vdc'/></disk>
                <disk type='file'><source file='json:{"url":"secret"}'/><target dev='vdd'/></disk>
                <disk type='block'><source dev='iscsi://u%secret@h/iqn/1'/><target dev='vde'/></disk>
              </devices></domain>"#,
        );
        let disks = found.unwrap().disks;
        let resources: Vec<_> = disks.iter().map(|disk| &*disk.resource).collect();
        let expected =
            ["rbd:pool/a@mon1:6789", "https:/a@h", "https://h/a", "json:", "iscsi://h/iqn/1"];
        assert_eq!(resources, expected);
    }

    #[test]
    fn hostile_text_is_an_error_or_left_out() {
        let bomb = r#"<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]><domain><name>&b;</name></domain>"#;
        assert!(parse(bomb).is_err());
        assert!(parse(&"<a>".repeat(100_000)).is_err());
        assert!(parse(&" ".repeat(MAX_LEN + 1)).is_err());
        let numbers = "<domain><vcpu current='-1'>99999999999</vcpu><memory unit='TiB'>99999999999</memory></domain>";
        assert_eq!(parse(numbers).unwrap(), DomainXml::default());
        assert_eq!(parse("<x/>").unwrap(), DomainXml::default());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in "(<(/)?(domain|devices|disk|source|target|memory|vcpu)( (type|dev|unit|file)='[a-zé0-9]{0,4}')?(/)?>|[a-z0-9&;]{0,4}){0,24}") {
            let _ = parse(&text);
        }
    }
}

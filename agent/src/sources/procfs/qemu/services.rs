//! Where a protocol node of QEMU has its data, from its members (`BlockdevOptions` of QEMU's `qapi/block-core.json`).

use super::{super::options::Fields, nodes::Node};
use crate::sources::storage_location::{Address, Location};

/// Drivers for a file or device of the host.
const LOCAL: [&str; 3] = ["file", "host_device", "host_cdrom"];

/// Drivers whose member `url` says it all.
const URLS: [&str; 5] = ["http", "https", "ftp", "ftps", "tftp"];

/// Drivers for neither a file nor a service.
const OTHERS: [&str; 8] = [
    "null-co",
    "null-aio",
    "nvme",
    "vvfat",
    "nvme-io_uring",
    "virtio-blk-vhost-user",
    "virtio-blk-vhost-vdpa",
    "virtio-blk-vfio-pci",
];

/// Most hosts of a service that are named.
const MAX_HOSTS: usize = 16;

/// Whether a driver has its data itself, not in a node below it.
pub(super) fn is_protocol(driver: &str) -> bool {
    let services =
        ["rbd", "nbd", "iscsi", "iser", "gluster", "ssh", "nfs", "sheepdog", "vxhs", "vitastor"];
    LOCAL.contains(&driver)
        || URLS.contains(&driver)
        || OTHERS.contains(&driver)
        || services.contains(&driver)
}

/// The location of a protocol node. `None`: its members do not tell.
pub(super) fn location(node: Node<'_>) -> Option<Location> {
    let get = |key| node.get(key).filter(|value| !value.is_empty());
    let driver = get("driver").unwrap_or_default();
    if LOCAL.contains(&driver) {
        return get("filename").map(Location::of_path);
    }
    if OTHERS.contains(&driver) {
        return Some(other(driver, node));
    }
    if let Some(name) = get("filename").or_else(|| get("url")) {
        let found = Location::of_name(name);
        // QEMU takes a name for what its driver says.
        return Some(match found {
            Location::Local(name) if URLS.contains(&driver) => {
                Location::of_service(driver, &name, &[])
            }
            found => found,
        });
    }
    let (name, hosts) = image(driver, node)?;
    Some(Location::of_service(driver, &name, &hosts))
}

/// The name of an image of a service, and the service's hosts.
fn image(driver: &str, node: Node<'_>) -> Option<(String, Vec<String>)> {
    let get = |key| node.get(key).filter(|value| !value.is_empty());
    let joined = |keys: &[&'static str]| {
        let parts: Vec<&str> = keys.iter().copied().filter_map(&get).collect();
        parts.join("/").replace("//", "/")
    };
    let tagged = |name: String, separator, tag| match get(tag) {
        Some(tag) => format!("{name}{separator}{tag}"),
        None => name,
    };
    Some(match driver {
        "rbd" => (tagged(joined(&["pool", "namespace", "image"]), '@', "snapshot"), hosts(node)),
        "iscsi" | "iser" => {
            (joined(&["target", "lun"]), get("portal").into_iter().map(str::to_owned).collect())
        }
        "nbd" => (joined(&["export"]), hosts(node)),
        "gluster" => (joined(&["volume", "path"]), hosts(node)),
        "ssh" | "nfs" => (joined(&["path"]), hosts(node)),
        "sheepdog" => (tagged(joined(&["vdi"]), ':', "tag"), hosts(node)),
        "vxhs" => (joined(&["vdisk-id"]), hosts(node)),
        "vitastor" => (joined(&["pool", "image"]), Vec::new()),
        driver if URLS.contains(&driver) => (String::new(), Vec::new()),
        _ => return None,
    })
}

/// The hosts in the members `server`, which is one or a list, or without it in `host`, `port` and `path`.
fn hosts(node: Node<'_>) -> Vec<String> {
    let Some(server) = node.member("server") else {
        let own = match node.get("driver") {
            // The path of a socket.
            Some("nbd") => host(node),
            _ => node.get("host").and_then(|_| host(node)),
        };
        return own.into_iter().collect();
    };
    let listed = server.members().filter(|(at, _)| at.bytes().all(|byte| byte.is_ascii_digit()));
    let mut listed: Vec<_> =
        listed.filter_map(|(at, member)| Some((at.parse::<u32>().ok()?, member))).collect();
    listed.sort_by_key(|(at, _)| *at);
    if listed.is_empty() {
        return host(server).into_iter().collect();
    }
    listed.into_iter().take(MAX_HOSTS).filter_map(|(_, member)| host(member)).collect()
}

/// `host:port`, or the path of a socket (`SocketAddress` of QEMU's `qapi/sockets.json`).
fn host(address: &Fields) -> Option<String> {
    let get = |key| address.get(key).filter(|value| !value.is_empty());
    let name = get("host").or_else(|| get("cid")).or_else(|| get("data.host"));
    let Some(name) = name else {
        // An abstract socket may have any name.
        let socket = get("path").or_else(|| get("socket")).or_else(|| get("data.path"));
        return socket.map(str::to_owned);
    };
    let name = if name.contains(':') && !name.contains(['[', '@']) {
        format!("[{name}]")
    } else {
        name.to_owned()
    };
    Some(match get("port").or_else(|| get("data.port")) {
        Some(port) => format!("{name}:{port}"),
        None => name,
    })
}

fn other(driver: &str, node: Node<'_>) -> Location {
    let get = |key| node.get(key).unwrap_or_default();
    let place = match driver {
        "nvme" => [get("device"), get("namespace")].join("/"),
        "vvfat" => get("dir").to_owned(),
        "null-co" | "null-aio" => String::new(),
        _ => get("path").to_owned(),
    };
    Location::Other(Address::new(driver, format!("{driver}:{place}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_lead_to_an_image() {
        for (node, text) in [
            (r#"{"driver":"rbd","pool":"tank","image":"d0"}"#, "rbd:tank/d0"),
            (
                r#"{"driver":"rbd","pool":"tank","namespace":"n","image":"d0","snapshot":"s","user":"secret","key-secret":"secret",
                    "server":[{"host":"m1","port":"6789"},{"host":"::1","port":"6789"}]}"#,
                "rbd:tank/n/d0@s@m1:6789,[::1]:6789",
            ),
            (
                r#"{"driver":"iscsi","transport":"tcp","portal":"10.0.0.2:3260","target":"iqn.x:t","lun":1,"user":"secret"}"#,
                "iscsi:iqn.x:t/1@10.0.0.2:3260",
            ),
            (
                r#"{"driver":"nbd","server":{"type":"unix","path":"/run/n.sock"},"export":"x","tls-creds":"secret"}"#,
                "nbd:x@/run/n.sock",
            ),
            (
                r#"{"driver":"nbd","server":{"type":"inet","host":"h","port":"10809"}}"#,
                "nbd:@h:10809",
            ),
            (r#"{"driver":"nbd","path":"/run/n.sock","export":"x"}"#, "nbd:x@/run/n.sock"),
            (
                r#"{"driver":"gluster","volume":"v","path":"/a","server":[{"type":"tcp","host":"h","port":"24007"},
                    {"type":"unix","socket":"/run/g.sock"}]}"#,
                "gluster:v/a@h:24007,/run/g.sock",
            ),
            (
                r#"{"driver":"ssh","path":"/i/a","user":"secret","server":{"host":"h","port":"22"}}"#,
                "ssh:/i/a@h:22",
            ),
            (r#"{"driver":"ssh","path":"/i/a","host":"h"}"#, "ssh:/i/a@h"),
            (
                r#"{"driver":"https","url":"https://u:secret@h/a?t=secret","cookie":"secret","password-secret":"secret"}"#,
                "https://h/a",
            ),
            (r#"{"driver":"nfs","server":{"type":"inet","host":"h"},"path":"/e/a"}"#, "nfs:/e/a@h"),
        ] {
            let found = location(&Fields::parse_json(node).unwrap()).unwrap();
            assert!(matches!(found, Location::Network(_)), "{node}");
            assert_eq!(found.into_text(), text);
        }
        let text = |node| location(&Fields::parse_json(node).unwrap()).map(Location::into_text);
        assert_eq!(text(r#"{"driver":"file","filename":"a:b"}"#).as_deref(), Some("a:b"));
        assert_eq!(text(r#"{"driver":"null-co","size":1}"#).as_deref(), Some("null-co:"));
        assert_eq!(text(r#"{"driver":"qcow2","file":"gone"}"#), None);
    }
}

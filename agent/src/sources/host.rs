//! The host's network interfaces as IF-MIB numbers them, from sysfs. net-snmp's ifIndex is the kernel's own
//! (agent/mibgroup/if-mib/data_access/interface_linux.c).

use std::{collections::HashMap, fs, path::Path};

/// Where the kernel shows its interfaces.
const SYSFS: &str = "/sys/class/net";

/// The longest chain of interfaces upon interfaces that is followed.
const MAX_DEPTH: usize = 8;

/// The host's interfaces as they are at the moment; what was found for a bridge holds for all that are on it.
#[derive(Debug, Default)]
pub(crate) struct HostNics {
    bridges: HashMap<String, u32>,
}

impl HostNics {
    /// The ifIndex of an interface and that of the physical one through which it reaches the network; 0 where
    /// there is none.
    pub(crate) fn if_indexes(&mut self, device: &str) -> (u32, u32) {
        self.if_indexes_in(Path::new(SYSFS), device)
    }

    fn if_indexes_in(&mut self, sysfs: &Path, device: &str) -> (u32, u32) {
        if !is_name(device) {
            return (0, 0);
        }
        (index(sysfs, device), self.parent(sysfs, device))
    }

    /// The ifIndex of the physical interface: for a tap, another port of the same bridge; for a macvtap, its lower device.
    fn parent(&mut self, sysfs: &Path, device: &str) -> u32 {
        let number = |found: Option<String>| found.map_or(0, |parent| index(sysfs, &parent));
        let bridge = fs::read_link(sysfs.join(device).join("master")).ok();
        let Some(bridge) = bridge.and_then(|path| Some(path.file_name()?.to_str()?.to_owned()))
        else {
            let lower = below(sysfs, device);
            return number(lower.first().and_then(|lower| physical(sysfs, lower, 0)));
        };
        let find = |bridge: &String| {
            let ports = names(&sysfs.join(bridge).join("brif"));
            // The first by name, so that the answer does not depend on the order of a directory.
            number(ports.iter().find_map(|port| physical(sysfs, port, 0)))
        };
        *self.bridges.entry(bridge).or_insert_with_key(find)
    }
}

/// Whether the kernel accepts it as an interface name (dev_valid_name() in net/core/dev.c). Such a name cannot lead out of
/// sysfs.
fn is_name(device: &str) -> bool {
    !device.is_empty()
        && device.len() < 16
        && !device.contains('/')
        && device != "."
        && device != ".."
}

fn index(sysfs: &Path, device: &str) -> u32 {
    let text = fs::read_to_string(sysfs.join(device).join("ifindex")).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// The physical interface: this one, or one below it (VLAN). A bond counts as physical.
fn physical(sysfs: &Path, device: &str, depth: usize) -> Option<String> {
    let dir = sysfs.join(device);
    if dir.join("device").exists() || dir.join("bonding").exists() {
        return Some(device.to_owned());
    }
    if depth == MAX_DEPTH {
        return None;
    }
    below(sysfs, device).iter().find_map(|lower| physical(sysfs, lower, depth + 1))
}

fn below(sysfs: &Path, device: &str) -> Vec<String> {
    let lower = |name: &String| name.strip_prefix("lower_").map(str::to_owned);
    names(&sysfs.join(device)).iter().filter_map(lower).collect()
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A host as sysfs shows it: each interface with its number and what it has beside that.
    fn host(interfaces: &[(&str, u32, &[&str])]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, number, parts) in interfaces {
            let dir = root.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("ifindex"), format!("{number}\n")).unwrap();
            for part in *parts {
                match part.split_once('=') {
                    Some((link, target)) => {
                        symlink(format!("../{target}"), dir.join(link)).unwrap()
                    }
                    None => fs::create_dir_all(dir.join(part)).unwrap(),
                }
            }
        }
        root
    }

    #[test]
    fn the_physical_interface_behind_each_kind() {
        let host = host(&[
            ("eth0", 2, &["device"]),
            ("eth1", 3, &["device"]),
            ("bond0", 4, &["bonding", "lower_eth1=eth1"]),
            ("eth0.7", 5, &["lower_eth0=eth0"]),
            ("br0", 6, &["brif/eth0.7", "brif/vnet0"]),
            ("br1", 7, &["brif/bond0", "brif/vnet1"]),
            ("br2", 8, &["brif/vnet2"]),
            ("vnet0", 10, &["master=br0"]),
            ("vnet1", 11, &["master=br1"]),
            ("vnet2", 12, &["master=br2"]),
            ("macvtap0", 13, &["lower_eth1=eth1"]),
            ("tap9", 14, &[]),
            ("loop", 15, &["lower_loop=loop"]),
        ]);
        let mut interfaces = HostNics::default();
        for (device, expected) in [
            ("vnet0", (10, 2)),
            ("vnet1", (11, 4)),
            ("vnet2", (12, 0)),
            ("macvtap0", (13, 3)),
            ("tap9", (14, 0)),
            ("loop", (15, 0)),
            ("absent", (0, 0)),
            ("../../etc", (0, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(interfaces.if_indexes_in(host.path(), device), expected, "{device}");
        }
    }
}

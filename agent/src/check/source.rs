//! Where VMs are found.

use std::path::Path;

use super::Check;
use crate::config::Inventory;

/// The read-only sockets of libvirtd and of the daemons of single drivers, which a URI of this host leads to.
const DIR: &str = "/var/run/libvirt";

pub(super) fn checks(inventory: &Inventory) -> Vec<Check> {
    const NAME: &str = "libvirt";
    if inventory.libvirt.is_empty() {
        return vec![Check::ok(NAME, "turned off; VMs are found in procfs")];
    }
    let exists = |socket: &str| Path::new(socket).exists();
    inventory.libvirt.iter().map(|uri| assess(inventory, uri, exists)).collect()
}

/// The sockets of a daemon of this host for this URI; none where the URI leads elsewhere, or needs no daemon.
fn sockets(uri: &str) -> Vec<String> {
    let Some((driver, rest)) = uri.split_once("://") else { return Vec::new() };
    if driver == "test" || driver.contains('+') || !rest.starts_with('/') {
        return Vec::new();
    }
    if let Some((_, socket)) = rest.split_once("socket=") {
        return vec![socket.split('&').next().unwrap_or(socket).to_owned()];
    }
    ["libvirt".to_owned(), format!("virt{driver}d")]
        .map(|daemon| format!("{DIR}/{daemon}-sock-ro"))
        .to_vec()
}

fn assess(inventory: &Inventory, uri: &str, exists: impl Fn(&str) -> bool) -> Check {
    const NAME: &str = "libvirt";
    const FIX: &str = "systemctl start libvirtd, or set inventory.libvirt to \"\" if there is none";
    let sockets = sockets(uri);
    if sockets.is_empty() {
        return Check::ok(
            NAME,
            format!("{uri}: not a daemon of this host; tried when kvmeter runs"),
        );
    }
    match sockets.iter().find(|socket| exists(socket)) {
        Some(socket) => Check::ok(NAME, format!("{uri}: {socket}")),
        None if inventory.procfs => {
            Check::warn(NAME, format!("{uri}: no socket; VMs are found in procfs only"), FIX)
        }
        None => Check::fail(
            NAME,
            format!("{uri}: no socket, and inventory.procfs is false: no VM is found"),
            FIX,
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn libvirt_may_be_missing_where_procfs_is_a_source() {
        let mut inventory = Inventory::default();
        let uri = "qemu:///system";
        let of_driver = |socket: &str| socket.ends_with("/virtqemud-sock-ro");
        assert_eq!(assess(&inventory, uri, of_driver).verdict, Verdict::Ok);
        assert!(matches!(
            assess(&inventory, uri, |_| false).verdict,
            Verdict::Warn(fix) if fix.starts_with("systemctl start libvirtd")
        ));
        inventory.procfs = false;
        assert!(matches!(
            assess(&inventory, uri, |_| false).verdict,
            Verdict::Fail(fix) if fix.starts_with("systemctl start libvirtd")
        ));
        let named = "qemu:///system?socket=/run/other-sock&no_tty=1";
        assert_eq!(assess(&inventory, named, |it| it == "/run/other-sock").verdict, Verdict::Ok);
        for elsewhere in ["test:///default", "qemu+ssh://host/system"] {
            assert_eq!(assess(&inventory, elsewhere, |_| false).verdict, Verdict::Ok);
        }
        inventory.libvirt.clear();
        assert_eq!(checks(&inventory)[0].verdict, Verdict::Ok);
    }
}

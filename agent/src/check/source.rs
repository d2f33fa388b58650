//! Sources of VMs.

use std::path::Path;

use super::Check;
use crate::config::Inventory;

/// Read-only sockets of libvirtd and of virtqemud.
const LIBVIRT_SOCKETS: [&str; 2] =
    ["/var/run/libvirt/libvirt-sock-ro", "/var/run/libvirt/virtqemud-sock-ro"];

pub(super) fn checks(inventory: &Inventory) -> Vec<Check> {
    let found = LIBVIRT_SOCKETS.into_iter().find(|socket| Path::new(socket).exists());
    vec![assess_libvirt(inventory, found)]
}

fn assess_libvirt(inventory: &Inventory, socket: Option<&str>) -> Check {
    const NAME: &str = "libvirt";
    const FIX: &str = "systemctl start libvirtd, or set inventory.libvirt to \"\" if there is none";
    match (&inventory.libvirt, socket) {
        (None, _) => Check::ok(NAME, "turned off; VMs are found in procfs"),
        (Some(uri), Some(socket)) => Check::ok(NAME, format!("{uri}: {socket}")),
        (Some(uri), None) if inventory.procfs => {
            Check::warn(NAME, format!("{uri}: no socket; VMs are found in procfs only"), FIX)
        }
        (Some(uri), None) => Check::fail(
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
        let socket = Some(LIBVIRT_SOCKETS[0]);
        assert_eq!(assess_libvirt(&inventory, socket).verdict, Verdict::Ok);
        assert!(matches!(
            assess_libvirt(&inventory, None).verdict,
            Verdict::Warn(fix) if fix.starts_with("systemctl start libvirtd")
        ));
        inventory.procfs = false;
        assert!(matches!(
            assess_libvirt(&inventory, None).verdict,
            Verdict::Fail(fix) if fix.starts_with("systemctl start libvirtd")
        ));
        inventory.libvirt = None;
        assert_eq!(assess_libvirt(&inventory, None).verdict, Verdict::Ok);
    }
}

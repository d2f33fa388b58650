//! The control group in which libvirt puts the process of a domain, as `/proc/PID/cgroup` shows it (cgroups(7)).

use crate::inventory::Machine;

/// The drivers whose domains are VMs.
const DRIVERS: [&str; 2] = ["qemu", "ch"];

/// The domain in whose group a process is: `machine.slice/machine-qemu\x2d3\x2dweb.scope` with systemd (virSystemdMakeScopeName()
/// in libvirt's virsystemd.c), `machine/qemu-3-web.libvirt-qemu` without (virCgroupNewMachineManual() in vircgroup.c). Only
/// root can make groups there, except below a group that is delegated.
pub(super) fn parse(text: &[u8]) -> Option<Machine> {
    let text = String::from_utf8_lossy(text);
    text.lines().find_map(|line| {
        // hierarchy-ID:controllers:path
        let path = line.splitn(3, ':').nth(2)?;
        let mut parts = path.strip_prefix('/')?.split('/');
        match parts.next()? {
            "machine.slice" => {
                // A domain's partition is a slice below that of all machines. What is below another group may be made by
                // the root of a container.
                let scope = parts.find(|part| !part.ends_with(".slice"))?;
                let name = scope.strip_prefix("machine-")?.strip_suffix(".scope")?;
                of_name(&name.replace("\\x2d", "-"))
            }
            "machine" => {
                let group = parts.find(|part| !part.ends_with(".partition"))?;
                of_name(group.split_once(".libvirt-")?.0)
            }
            _ => None,
        }
    })
}

/// `DRIVER-ID-NAME` (virDomainDriverGenerateMachineName() in libvirt's domain_driver.c).
fn of_name(name: &str) -> Option<Machine> {
    let (driver, rest) = name.split_once('-')?;
    let (id, _) = rest.split_once('-')?;
    let driver = DRIVERS.into_iter().find(|known| *known == driver)?;
    Some(Machine { driver: driver.to_owned(), id: id.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_domains() {
        let machine = |driver: &str, id| Some(Machine { driver: driver.to_owned(), id });
        for (text, expected) in [
            (
                r"0::/machine.slice/machine-qemu\x2d3\x2dweb.scope/libvirt/emulator",
                machine("qemu", 3),
            ),
            (
                r"0::/machine.slice/machine-prod.slice/machine-ch\x2d12\x2da\x2db.scope",
                machine("ch", 12),
            ),
            ("12:cpuset:/machine/qemu-1-web.libvirt-qemu/emulator\n0::/", machine("qemu", 1)),
            ("0::/machine/prod.partition/qemu-1-web.libvirt-qemu/emulator", machine("qemu", 1)),
            // Below the group of a container, whose root may make groups.
            (
                r"0::/machine.slice/machine-lxc\x2d1\x2dct.scope/machine-qemu\x2d3\x2dweb.scope",
                None,
            ),
            (
                r"0::/machine.slice/libpod-ab.scope/machine.slice/machine-qemu\x2d3\x2dweb.scope",
                None,
            ),
            (r"0::/machine.slice/ab/machine-qemu\x2d3\x2dweb.scope", None),
            (r"0::/machine.slice/a.service/a.slice/machine-qemu\x2d3\x2dweb.scope", None),
            ("0::/machine/lxc-1-ct.libvirt-lxc/qemu-3-web.libvirt-qemu", None),
            ("0::/machine/prod.partition/ab/qemu-3-web.libvirt-qemu", None),
            ("0::/user.slice/user-1000.slice/machine.slice/machine-qemu\\x2d3\\x2dweb.scope", None),
            ("0::/../machine.slice/machine-qemu\\x2d3\\x2dweb.scope", None),
            ("0::/machine.slice/machine-lxc\\x2d3\\x2dweb.scope", None),
            ("0::/machine.slice/machine-qemu\\x2dembed\\x2dab\\x2d3\\x2dweb.scope", None),
            ("0::/system.slice/libvirtd.service", None),
            ("0::/", None),
            ("x\n:\n::", None),
        ] {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }
}

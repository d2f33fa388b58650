//! Where VMs are found: each libvirt connection is opened as the agent opens it.

use std::{path::Path, time::Duration};

use super::{Check, Judged};
use crate::config::Inventory;

const NAME: &str = "libvirt";

/// Timeout for all connections together.
#[cfg(feature = "libvirt")]
const PATIENCE: Duration = Duration::from_secs(5);

/// Directories of systemd's units of the distributions.
const UNITS: [&str; 3] = ["/usr/lib/systemd/system", "/lib/systemd/system", "/etc/systemd/system"];

pub(super) fn checks(inventory: &Inventory, judged: &Judged) -> Vec<Check> {
    if inventory.libvirt.is_empty() {
        return vec![Check::ok(NAME, "turned off; VMs are found in procfs")];
    }
    let is_unit = |unit: &str| UNITS.iter().any(|dir| Path::new(dir).join(unit).exists());
    let tried = opened(&inventory.libvirt);
    let of_uri = |(uri, tried): (&String, Result<String, String>)| {
        assess(inventory, uri, tried, &fix(uri, is_unit, judged))
    };
    inventory.libvirt.iter().zip(tried).map(of_uri).collect()
}

#[cfg(feature = "libvirt")]
fn opened(uris: &[String]) -> Vec<Result<String, String>> {
    let tried = crate::sources::libvirt::try_connections(uris, PATIENCE);
    tried.into_iter().map(|tried| tried.map_err(|error| error.to_string())).collect()
}

#[cfg(not(feature = "libvirt"))]
fn opened(uris: &[String]) -> Vec<Result<String, String>> {
    let untried = || Err("this kvmeter was built without libvirt".to_owned());
    uris.iter().map(|_| untried()).collect()
}

fn assess(inventory: &Inventory, uri: &str, tried: Result<String, String>, fix: &str) -> Check {
    match tried {
        Ok(answer) => Check::ok(NAME, format!("{uri}: {answer}")),
        Err(said) if inventory.procfs => Check::warn(
            NAME,
            format!("{uri}: {said}; until it answers, VMs are found in procfs only"),
            fix,
        ),
        Err(said) => Check::fail(
            NAME,
            format!("{uri}: {said}; inventory.procfs is false, so no VM of it is found"),
            fix,
        ),
    }
}

/// What to do if the connection cannot be opened. `is_unit` tells whether systemd has a unit.
fn fix(uri: &str, is_unit: impl Fn(&str) -> bool, judged: &Judged) -> String {
    const NONE: &str = "take the URI out of inventory.libvirt (\"\" if there is no other)";
    if cfg!(not(feature = "libvirt")) {
        return format!("install a kvmeter with libvirt, or {NONE}");
    }
    let (scheme, rest) = uri.split_once(':').unwrap_or((uri, ""));
    let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, ""));
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let is_remote = !rest.starts_with('/') || !matches!(transport, "" | "unix");
    let (address, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    if is_remote {
        let host = address.split('/').next().filter(|host| !host.is_empty()).unwrap_or("the host");
        let also = match judged {
            Judged::Caller => "",
            Judged::Service(_) => {
                ", and let the service out: IPAddressAllow=, and ProtectHome=no for keys of ssh"
            }
        };
        return format!(
            "see that `virsh -r -c '{uri}' list` works{also}; start libvirt on {host}, or {NONE}"
        );
    }
    let socket = parameters.split('&').find_map(|parameter| parameter.strip_prefix("socket="));
    if let Some(socket) = socket {
        return format!("start the daemon that listens at {socket}, or correct the URI, or {NONE}");
    }
    match driver {
        "test" => return format!("correct the URI: test:///default or test:///FILE, or {NONE}"),
        "esx" | "gsx" | "vpx" | "hyperv" | "openvz" | "vmwareplayer" | "vmwarews"
        | "vmwarefusion" => {
            return format!("read https://libvirt.org/drv{driver}.html, or {NONE}");
        }
        _ if address.ends_with("/session") || address.ends_with("/embed") => {
            return format!(
                "give the URI of a system's daemon, {driver}:///system: others are the user's own, or {NONE}"
            );
        }
        _ => {}
    }
    // The driver of Xen has a daemon of another name (libvirt's src/remote/remote_sockets.c).
    let modular = match driver {
        "xen" => "virtxend".to_owned(),
        driver => format!("virt{driver}d"),
    };
    let start = if is_unit(&format!("{modular}.socket")) {
        // Beside them libvirtd would take their sockets.
        format!(
            "systemctl start {modular}-ro.socket (not libvirtd: the daemons of this host are modular)"
        )
    } else if is_unit("libvirtd.socket") || is_unit("libvirtd.service") {
        let socket = if is_unit("libvirtd-ro.socket") { "libvirtd-ro.socket" } else { "libvirtd" };
        format!("systemctl start {socket}")
    } else {
        format!("install and start {modular} or libvirtd with the driver {driver}")
    };
    format!("{start}, or {NONE}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn libvirt_may_be_missing_where_procfs_is_a_source() {
        let mut inventory = Inventory::default();
        let uri = "qemu:///system";
        let refused = || Err("Failed to connect".to_owned());
        let answers = || Ok("QEMU 7.2.0 answers, domains: 1".to_owned());
        let check = assess(&inventory, uri, refused(), "start it");
        assert_eq!(check.verdict, Verdict::Warn("start it".into()));
        assert!(check.found.starts_with("qemu:///system: Failed to connect; "), "{check:?}");
        assert_eq!(assess(&inventory, uri, answers(), "").verdict, Verdict::Ok);
        inventory.procfs = false;
        assert_eq!(assess(&inventory, uri, refused(), "x").verdict, Verdict::Fail("x".into()));
        assert_eq!(assess(&inventory, uri, answers(), "").verdict, Verdict::Ok);
        inventory.libvirt.clear();
        assert_eq!(checks(&inventory, &Judged::Caller)[0].verdict, Verdict::Ok);
    }

    #[cfg(feature = "libvirt")]
    #[test]
    fn the_fix_is_that_of_the_uris_own_daemon() {
        let monolithic: &[&str] = &["libvirtd.service", "libvirtd.socket", "libvirtd-ro.socket"];
        let modular: &[&str] = &[
            "virtqemud.socket",
            "virtqemud-ro.socket",
            "virtxend.socket",
            "virtlxcd.socket",
            "virtchd.socket",
            "libvirtd.socket",
        ];
        for (uri, units, begins) in [
            ("qemu:///system", monolithic, "systemctl start libvirtd-ro.socket, or "),
            ("qemu:///system", &["libvirtd.service"], "systemctl start libvirtd, or "),
            ("qemu:///system", modular, "systemctl start virtqemud-ro.socket (not libvirtd"),
            ("qemu+unix:///system", modular, "systemctl start virtqemud-ro.socket (not libvirtd"),
            ("qemu:///system", &[], "install and start virtqemud or libvirtd"),
            ("xen:///system", modular, "systemctl start virtxend-ro.socket"),
            ("lxc:///system", modular, "systemctl start virtlxcd-ro.socket"),
            ("ch:///system", modular, "systemctl start virtchd-ro.socket"),
            ("ch:///system", monolithic, "systemctl start libvirtd-ro.socket"),
            ("qemu:///session", modular, "give the URI of a system's daemon, qemu:///system"),
            (
                "qemu:///system?socket=/run/x&no_tty=1",
                modular,
                "start the daemon that listens at /run/x",
            ),
            ("test:///missing.xml", modular, "correct the URI: test:///default"),
            (
                "qemu+ssh://root@host/system",
                modular,
                "see that `virsh -r -c 'qemu+ssh://root@host/system' list` works; start libvirt on root@host",
            ),
            ("qemu://host/system", modular, "see that `virsh"),
            ("esx://host/", modular, "see that `virsh"),
            ("qemu+ssh:///system", modular, "see that `virsh"),
        ] {
            let found = fix(uri, |unit| units.contains(&unit), &Judged::Caller);
            assert!(found.starts_with(begins), "{uri}: {found}");
            assert!(
                found
                    .ends_with("take the URI out of inventory.libvirt (\"\" if there is no other)")
            );
        }
    }
}

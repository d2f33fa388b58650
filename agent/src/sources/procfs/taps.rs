//! Matches the taps and macvtaps that a process has open with its network interfaces. A command line may claim anything;
//! descriptors are read from the kernel.

use std::{collections::BTreeSet, ffi::OsString, path::Path};

use super::process::{Process, path_of_target};
use crate::inventory::{DomainNic, Taps, UnnamedTap};

/// Where the kernel lists character devices by their numbers.
const CHARACTER_DEVICES: &str = "/sys/dev/char";

/// The name of a macvtap, if a descriptor of this path is one. Its device is named `tap` and the ifIndex
/// (drivers/net/macvtap.c), and lies below the interface in sysfs: `…/net/macvtap0/macvtap/tap9`.
pub(super) fn macvtap(process: &Process, fd: u32, path: &str) -> Option<String> {
    let number = path_of_target(path).rsplit('/').next()?.strip_prefix("tap")?;
    number.parse::<u32>().ok()?;
    let (major, minor) = process.character_device(fd).ok()??;
    let device = std::fs::read_link(format!("{CHARACTER_DEVICES}/{major}:{minor}")).ok()?;
    let tap = OsString::from(format!("tap{number}"));
    interface_of(&device).filter(|_| device.file_name() == Some(&tap))
}

/// The interface of the device of a macvtap or ipvtap in sysfs.
fn interface_of(device: &Path) -> Option<String> {
    let mut above = device.ancestors().skip(1).filter_map(Path::file_name);
    above.next().filter(|class| *class == "macvtap" || *class == "ipvtap")?;
    let name = above.next()?.to_str()?.to_owned();
    above.next().filter(|class| *class == "net")?;
    Some(name)
}

/// What the interfaces are to the host. `held`: in ascending order of descriptors.
pub(super) fn taps(process: &Process, held: &[(u32, String)]) -> Taps {
    if held.is_empty() {
        return Taps::default();
    }
    let own = std::fs::read_link("/proc/self/ns/net");
    match (process.network_namespace(), own) {
        (Ok(its), Ok(own)) if its.to_bytes() == own.as_os_str().as_encoded_bytes() => {
            Taps::Held(names(held))
        }
        (Ok(_), Ok(_)) => Taps::Elsewhere,
        _ => Taps::Unknown,
    }
}

/// Each name once, as a tap with many queues has a descriptor for each.
fn names(held: &[(u32, String)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (_, name) in held {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    names
}

/// Names the taps of interfaces by the descriptors. A tap that no interface of the description has was plugged in by the VMM's monitor
/// or API, and has an interface of its own, unless it may be that of an interface whose tap is not found.
pub(super) fn name_interfaces(nics: &mut Vec<DomainNic>, held: &[(u32, String)]) {
    for nic in nics.iter_mut() {
        if let Some(UnnamedTap::Descriptors(told)) = &nic.unnamed
            && let Some((_, name)) = held.iter().find(|(fd, _)| told.contains(fd))
        {
            (nic.device, nic.unnamed) = (Some(name.clone()), None);
        }
    }
    let names = names(held);
    // The others were opened in the order of their backends, and so are their descriptors, unless one was closed since.
    let named: BTreeSet<&String> = nics.iter().filter_map(|nic| nic.device.as_ref()).collect();
    let free: Vec<String> = names.iter().filter(|name| !named.contains(name)).cloned().collect();
    let order = |nic: &DomainNic| match nic.unnamed {
        Some(UnnamedTap::Opened(order)) => Some(order),
        _ => None,
    };
    let opened: BTreeSet<usize> = nics.iter().filter_map(order).collect();
    // One that is not there may have been renamed.
    let is_known = |nic: &DomainNic| {
        nic.unnamed.is_none() && nic.device.as_ref().is_none_or(|device| names.contains(device))
    };
    if nics.iter().all(is_known) {
        let of_tap = |name| DomainNic { device: Some(name), ..DomainNic::default() };
        nics.extend(free.into_iter().map(of_tap));
        return;
    }
    if opened.len() != free.len() {
        return;
    }
    for nic in nics {
        if let Some(order) = order(nic)
            && let Some(name) = free.get(opened.range(..order).count())
        {
            (nic.device, nic.unnamed) = (Some(name.clone()), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_that_was_plugged_in_later_has_an_interface() {
        let told = |device: &str| DomainNic {
            mac: vec![2, 0, 0, 0, 0, 1],
            device: Some(device.to_owned()),
            ..DomainNic::default()
        };
        let opened = DomainNic { unnamed: Some(UnnamedTap::Opened(0)), ..DomainNic::default() };
        let held = [(9, "tap0".to_owned()), (10, "tap1".to_owned()), (11, "tap1".to_owned())];
        let named = |mut nics: Vec<DomainNic>| {
            name_interfaces(&mut nics, &held);
            nics.into_iter().map(|nic| (nic.device, nic.mac.len())).collect::<Vec<_>>()
        };
        let (tap0, tap1) = (Some("tap0".to_owned()), Some("tap1".to_owned()));
        assert_eq!(named(vec![told("tap0")]), [(tap0.clone(), 6), (tap1.clone(), 0)]);
        assert_eq!(named(Vec::new()), [(tap0.clone(), 0), (tap1.clone(), 0)]);
        assert_eq!(named(vec![told("tap0"), opened.clone()]), [(tap0, 6), (tap1, 0)]);
        assert_eq!(named(vec![opened]), [(None, 0)], "it may be either");
    }

    #[test]
    fn a_macvtap_is_above_its_device() {
        let of = |path: &str| interface_of(Path::new(path));
        let device = "../../devices/virtual/net/macvtap0/macvtap/tap9";
        assert_eq!(of(device).as_deref(), Some("macvtap0"));
        assert_eq!(of("../../devices/virtual/net/net/ipvtap/tap9").as_deref(), Some("net"));
        assert_eq!(of("../../devices/virtual/misc/tun"), None);
        assert_eq!(of("tap9"), None);
    }

    fn named(name: &str) -> DomainNic {
        DomainNic { device: Some(name.to_owned()), ..DomainNic::default() }
    }

    fn unnamed(tap: UnnamedTap) -> DomainNic {
        DomainNic { unnamed: Some(tap), ..DomainNic::default() }
    }

    fn devices(mut nics: Vec<DomainNic>, held: &[(u32, &str)]) -> Vec<String> {
        let held: Vec<_> = held.iter().map(|(fd, name)| (*fd, (*name).to_owned())).collect();
        name_interfaces(&mut nics, &held);
        nics.into_iter().map(|nic| nic.device.unwrap_or_default()).collect()
    }

    #[test]
    fn a_tap_is_known_by_its_descriptor() {
        use UnnamedTap::{Descriptors, Opened};
        let queues = [(20, "t1"), (21, "t1"), (22, "t0"), (23, "t0")];
        let told = |fds: &[u32]| unnamed(Descriptors(fds.to_vec()));
        assert_eq!(devices(vec![told(&[22, 23]), told(&[20, 21])], &queues), ["t0", "t1"]);
        assert_eq!(devices(vec![told(&[9])], &queues), [""], "no tap");
        // In the order of their backends, which need not be that of the interfaces.
        let opened = |at| unnamed(Opened(at));
        assert_eq!(devices(vec![opened(7), opened(3)], &queues), ["t0", "t1"]);
        assert_eq!(devices(vec![opened(7), named("t1")], &queues), ["t0", "t1"]);
        // Two of one backend, a hub.
        assert_eq!(devices(vec![opened(1), opened(1)], &queues[..2]), ["t1", "t1"]);
        // One of them was plugged in or out since.
        assert_eq!(devices(vec![opened(7)], &queues), [""]);
        assert_eq!(devices(vec![opened(1), opened(2)], &queues[..2]), ["", ""]);
    }

    #[test]
    fn a_vmm_that_is_told_its_interfaces_by_an_api_has_one_for_each_tap() {
        let queues = [(20, "t1"), (21, "t1"), (22, "t0")];
        assert_eq!(devices(Vec::new(), &queues), ["t1", "t0"]);
        assert_eq!(devices(vec![named("t9")], &queues), ["t9"]);
    }
}

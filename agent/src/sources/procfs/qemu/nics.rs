//! The network interfaces of a QEMU: `-device` with its `-netdev`, `-nic`, and `-net nic` with the backend of its hub.

use std::collections::HashMap;

use super::{
    super::options::Fields,
    arguments::{Entry, Subject},
};
use crate::inventory::{DomainNic, UnnamedTap, mac};

/// The hub of a `-net` option that names none.
const FIRST_HUB: &str = "0";

/// What the host's side of interfaces is.
#[derive(Debug, Default)]
struct Backends<'a> {
    /// `-netdev` and `-net` with an id, by id.
    by_id: HashMap<&'a str, Backend<'a>>,
    /// The first tap in each hub.
    hubs: HashMap<&'a str, Backend<'a>>,
}

/// An option with the host's side of an interface.
#[derive(Clone, Copy, Debug)]
struct Backend<'a> {
    fields: &'a Fields,
    /// When QEMU opens it: net_init_clients() of QEMU's `net/net.c` goes through `-netdev`, `-nic` and `-net` in this order.
    order: usize,
}

/// The name of the host's interface, or what is known of a tap without a name.
#[derive(Debug, Default)]
struct HostSide {
    device: Option<String>,
    unnamed: Option<UnnamedTap>,
}

impl<'a> Backend<'a> {
    fn of(at: usize, entry: &'a Entry) -> Self {
        /// More than a command line has options.
        const EACH: usize = 1 << 24;
        let turn = match entry.subject {
            Subject::Nic => 1,
            Subject::Net => 2,
            _ => 0,
        };
        Self { fields: &entry.fields, order: turn * EACH + at }
    }

    fn kind(self) -> Option<&'a str> {
        self.fields.get_or_implied("type")
    }

    fn is_tap(self) -> bool {
        matches!(self.kind(), Some("tap" | "bridge"))
    }

    fn is_port(self) -> bool {
        self.kind() == Some("hubport")
    }

    fn host_side(self) -> HostSide {
        // The kernel replaces `%d` by a number.
        if let Some(name) = self.fields.get("ifname").filter(|name| !name.contains('%')) {
            return HostSide { device: Some(name.to_owned()), unnamed: None };
        }
        let told = self.fields.get("fds").or_else(|| self.fields.get("fd"));
        let unnamed = match told {
            Some(told) => UnnamedTap::Descriptors(descriptors(told)),
            None => UnnamedTap::Opened(self.order),
        };
        HostSide { device: None, unnamed: self.is_tap().then_some(unnamed) }
    }
}

/// `30` or `30:31`. A name is one of a descriptor that QEMU's monitor was given.
fn descriptors(told: &str) -> Vec<u32> {
    told.split(':').filter_map(|number| number.parse().ok()).collect()
}

impl<'a> Backends<'a> {
    fn of(entries: &'a [Entry]) -> Self {
        let mut found = Self::default();
        for (at, entry) in entries.iter().enumerate() {
            let Entry { subject, fields, .. } = entry;
            let backend = Backend::of(at, entry);
            let is_nic = backend.kind() == Some("nic");
            if *subject == Subject::Net && !is_nic && backend.is_tap() {
                found.hubs.entry(hub(fields)).or_insert(backend);
            }
            if let Some(id) = fields.get("id").or_else(|| fields.get("name"))
                && (*subject == Subject::Netdev || *subject == Subject::Net && !is_nic)
            {
                found.by_id.entry(id).or_insert(backend);
            }
        }
        // A hub is a backend, too, with others plugged into it.
        let ports = entries.iter().filter(|entry| entry.subject == Subject::Netdev);
        for port in ports.map(|entry| Backend::of(0, entry)).filter(|port| port.is_port()) {
            let plugged = port.fields.get("netdev").and_then(|id| found.by_id.get(id));
            if let (Some(hub), Some(backend)) =
                (port.fields.get("hubid"), plugged.filter(|plugged| plugged.is_tap()))
            {
                found.hubs.entry(hub).or_insert(*backend);
            }
        }
        found
    }

    /// What is behind `-netdev` with this id.
    fn host_side(&self, id: &str) -> HostSide {
        let Some(backend) = self.by_id.get(id) else { return HostSide::default() };
        if backend.is_port() {
            return self.in_hub(backend.fields.get("hubid").unwrap_or_default());
        }
        backend.host_side()
    }

    /// What is plugged into a hub.
    fn in_hub(&self, hub: &str) -> HostSide {
        self.hubs.get(hub).map(|backend| backend.host_side()).unwrap_or_default()
    }
}

/// The hub of a `-net` option.
fn hub(fields: &Fields) -> &str {
    fields.get("vlan").unwrap_or(FIRST_HUB)
}

/// The interfaces, in the order of the options.
pub(super) fn nics(entries: &[Entry]) -> Vec<DomainNic> {
    let backends = Backends::of(entries);
    let mut nics = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let Entry { subject, fields, .. } = entry;
        let kind = fields.get_or_implied("type");
        let nic = |HostSide { device, unnamed }: HostSide, model: &str| DomainNic {
            mac: fields.get("macaddr").or_else(|| fields.get("mac")).map(mac).unwrap_or_default(),
            device,
            unnamed,
            model: model.split("-net").next().unwrap_or(model).to_owned(),
        };
        let model = fields.get("model").unwrap_or_default();
        match subject {
            Subject::Device => {
                let driver = fields.get_or_implied("driver").unwrap_or_default();
                if let Some(id) = fields.get("netdev") {
                    nics.push(nic(backends.host_side(id), driver));
                } else if let Some(hub) = fields.get("vlan") {
                    nics.push(nic(backends.in_hub(hub), driver));
                }
            }
            Subject::Nic if kind != Some("none") => {
                let host_side = match fields.get("netdev") {
                    Some(id) => backends.host_side(id),
                    None => Backend::of(at, entry).host_side(),
                };
                nics.push(nic(host_side, model));
            }
            Subject::Net if kind == Some("nic") => {
                let host_side = match fields.get("netdev") {
                    Some(id) => backends.host_side(id),
                    None => backends.in_hub(hub(fields)),
                };
                nics.push(nic(host_side, model));
            }
            _ => {}
        }
    }
    nics
}

#[cfg(test)]
mod tests {
    use super::{super::arguments::entries, *};

    /// Octets at the end of the MAC address, interface of the host, and model.
    fn found(line: &str) -> Vec<(u8, Option<String>, String)> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let nics = nics(&entries(&arguments, &mut |_| None));
        nics.into_iter()
            .map(|nic| (nic.mac.last().copied().unwrap_or_default(), nic.device, nic.model))
            .collect()
    }

    #[test]
    fn a_tap_without_a_name_is_known_by_descriptor_or_by_order() {
        use UnnamedTap::{Descriptors, Opened};
        let unnamed = |line: &str| {
            let arguments: Vec<&str> = line.split_whitespace().collect();
            let nics = nics(&entries(&arguments, &mut |_| None));
            nics.into_iter().map(|nic| nic.unnamed).collect::<Vec<_>>()
        };
        assert_eq!(
            unnamed("-netdev tap,id=a,fds=30:31,vhost=on -device virtio-net-pci,netdev=a"),
            [Some(Descriptors(vec![30, 31]))]
        );
        assert_eq!(
            unnamed(
                r#"-netdev {"type":"tap","fd":"29","id":"a"} -device {"driver":"virtio-net-pci","netdev":"a"}"#
            ),
            [Some(Descriptors(vec![29]))]
        );
        assert_eq!(unnamed("-nic tap,fd=7"), [Some(Descriptors(vec![7]))]);
        assert_eq!(
            unnamed("-netdev tap,id=a,fd=of-the-monitor -device e1000,netdev=a"),
            [Some(Descriptors(Vec::new()))]
        );
        for none in ["-netdev user,id=a -device e1000,netdev=a", "-nic user", "-nic vhost-user"] {
            assert_eq!(unnamed(none), [None], "{none}");
        }
        let orders: Vec<_> = unnamed(
            "-nic tap,script=no -netdev bridge,id=b -netdev tap,id=a,ifname=vm%d -device e1000,netdev=a \
             -device e1000,netdev=b -net nic -net tap",
        );
        let orders = orders.into_iter().map(|tap| match tap {
            Some(Opened(order)) => order,
            other => panic!("{other:?}"),
        });
        let orders: Vec<_> = orders.collect();
        let mut sorted: Vec<usize> = (0..4).collect();
        sorted.sort_by_key(|at| orders[*at]);
        assert_eq!(sorted, [2, 1, 0, 3], "-netdev in their order, then -nic, then -net");
    }

    #[test]
    fn nics_of_the_old_kind_have_the_backend_of_their_hub() {
        let nic = |octet, device: Option<&str>, model: &str| {
            (octet, device.map(str::to_owned), model.to_owned())
        };
        assert_eq!(
            found("-net nic,model=e1000,macaddr=52:54:00:16:00:09 -net tap,ifname=t0,script=no"),
            [nic(9, Some("t0"), "e1000")]
        );
        assert_eq!(
            found(
                "-netdev tap,id=n0,ifname=t1 -net nic,netdev=n0,macaddr=52:54:00:16:00:0a,model=virtio"
            ),
            [nic(10, Some("t1"), "virtio")]
        );
        assert_eq!(
            found(
                "-net nic,vlan=1,macaddr=52:54:00:16:00:01 -net nic,vlan=2,macaddr=52:54:00:16:00:02 \
                 -net tap,vlan=2,ifname=t2 -net tap,vlan=1,ifname=t1"
            ),
            [nic(1, Some("t1"), ""), nic(2, Some("t2"), "")]
        );
        assert_eq!(found("-net nic -net user"), [nic(0, None, "")]);
        assert_eq!(found("-net nic -net bridge,br=br0"), [nic(0, None, "")]);
        assert_eq!(found("-net none"), []);
        assert_eq!(found("-nic none"), []);
        assert_eq!(
            found(
                "-netdev hubport,id=h,hubid=3 -netdev tap,id=t,ifname=t3 -netdev hubport,id=p,hubid=3,netdev=t -device e1000,netdev=h"
            ),
            [nic(0, Some("t3"), "e1000")]
        );
    }
}

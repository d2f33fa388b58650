//! The network interfaces of a QEMU: `-device` with its `-netdev`, `-nic`, and `-net nic` with the backend of its hub.

use std::collections::HashMap;

use super::{
    super::options::Fields,
    arguments::{Entry, Subject},
};
use crate::inventory::{DomainNic, mac};

/// The hub of a `-net` option that names none.
const FIRST_HUB: &str = "0";

/// What the host's side of interfaces is.
#[derive(Debug, Default)]
struct Backends<'a> {
    /// `-netdev` and `-net` with an id, by id.
    by_id: HashMap<&'a str, &'a Fields>,
    /// The first interface of the host in each hub.
    hubs: HashMap<&'a str, &'a str>,
}

impl<'a> Backends<'a> {
    fn of(entries: &'a [Entry]) -> Self {
        let mut found = Self::default();
        for Entry { subject, fields, .. } in entries {
            let is_nic = fields.get_or_implied("type") == Some("nic");
            if *subject == Subject::Net
                && !is_nic
                && let Some(name) = fields.get("ifname")
            {
                found.hubs.entry(hub(fields)).or_insert(name);
            }
            if let Some(id) = fields.get("id").or_else(|| fields.get("name"))
                && (*subject == Subject::Netdev || *subject == Subject::Net && !is_nic)
            {
                found.by_id.entry(id).or_insert(fields);
            }
        }
        // A hub is a backend, too, with others plugged into it.
        let ports = entries.iter().filter(|entry| entry.subject == Subject::Netdev);
        for port in ports.map(|entry| &entry.fields).filter(|port| is_port(port)) {
            let plugged = port.get("netdev").and_then(|id| found.by_id.get(id));
            if let (Some(hub), Some(name)) =
                (port.get("hubid"), plugged.and_then(|plugged| plugged.get("ifname")))
            {
                found.hubs.entry(hub).or_insert(name);
            }
        }
        found
    }

    /// The interface of the host behind `-netdev` with this id.
    fn device(&self, id: &str) -> Option<String> {
        let backend = self.by_id.get(id)?;
        let of_hub = || self.hubs.get(backend.get("hubid")?).copied();
        let name = backend.get("ifname").or_else(|| if is_port(backend) { of_hub() } else { None });
        name.map(str::to_owned)
    }
}

fn is_port(backend: &Fields) -> bool {
    backend.get_or_implied("type") == Some("hubport")
}

/// The hub of a `-net` option.
fn hub(fields: &Fields) -> &str {
    fields.get("vlan").unwrap_or(FIRST_HUB)
}

/// The interfaces, in the order of the options.
pub(super) fn nics(entries: &[Entry]) -> Vec<DomainNic> {
    let backends = Backends::of(entries);
    let mut nics = Vec::new();
    for Entry { subject, fields, .. } in entries {
        let kind = fields.get_or_implied("type");
        let nic = |device: Option<String>, model: &str| DomainNic {
            mac: fields.get("macaddr").or_else(|| fields.get("mac")).map(mac).unwrap_or_default(),
            device,
            model: model.split("-net").next().unwrap_or(model).to_owned(),
        };
        let model = fields.get("model").unwrap_or_default();
        match subject {
            Subject::Device => {
                if let Some(id) = fields.get("netdev") {
                    let driver = fields.get_or_implied("driver").unwrap_or_default();
                    nics.push(nic(backends.device(id), driver));
                } else if let Some(hub) = fields.get("vlan") {
                    let driver = fields.get_or_implied("driver").unwrap_or_default();
                    nics.push(nic(backends.hubs.get(hub).map(|name| (*name).to_owned()), driver));
                }
            }
            Subject::Nic if kind != Some("none") => {
                let device = fields.get("ifname").map(str::to_owned);
                let of_id = || fields.get("netdev").and_then(|id| backends.device(id));
                nics.push(nic(device.or_else(of_id), model));
            }
            Subject::Net if kind == Some("nic") => {
                let device = match fields.get("netdev") {
                    Some(id) => backends.device(id),
                    None => backends.hubs.get(hub(fields)).map(|name| (*name).to_owned()),
                };
                nics.push(nic(device, model));
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

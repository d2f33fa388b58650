//! Parses Cloud Hypervisor's command line. Accepts any text.

use super::{
    command_line::{Description, Vmm},
    devices::disk,
    options::{Fields, is_on},
};
use crate::{
    inventory::{Devices, DomainDisk, DomainNic, StorageSource, UnnamedTap, VmUuid, mac},
    sources::storage_location::Location,
};

/// Memory as the options add up.
#[derive(Debug, Default)]
struct Memory {
    /// Bytes of `--memory`, now and at most; `None`: no size is given.
    base: Option<(u64, u64)>,
    /// Bytes of the zones, now and at most.
    zones: Option<(u64, u64)>,
    is_unclear: bool,
}

impl Memory {
    /// Adds the sizes of `--memory` or a zone.
    fn add(&mut self, fields: &Fields, is_zone: bool) {
        let told = |key| fields.get(key).map(size);
        let (now, more, plugged) = (told("size"), told("hotplug_size"), told("hotplugged_size"));
        let sum = |now: u64| {
            let more = more.unwrap_or(Some(0))?;
            let plugged = plugged.unwrap_or(Some(0))?;
            Some((now.checked_add(plugged)?, now.checked_add(more.max(plugged))?))
        };
        let into = if is_zone { &mut self.zones } else { &mut self.base };
        match now {
            // Without a size, the default where there are no zones.
            None if !is_zone => {}
            None | Some(None) => self.is_unclear = true,
            Some(Some(now)) => {
                let before = if is_zone { into.unwrap_or_default() } else { (0, 0) };
                let both = sum(now).and_then(|(now, max)| {
                    Some((before.0.checked_add(now)?, before.1.checked_add(max)?))
                });
                self.is_unclear |= both.is_none();
                *into = both;
            }
        }
    }

    fn total(&self) -> Option<(u64, u64)> {
        if self.is_unclear {
            return None;
        }
        let (base, zones) = (self.base.unwrap_or_default(), self.zones.unwrap_or_default());
        let total = (base.0.checked_add(zones.0)?, base.1.checked_add(zones.1)?);
        Some(total).filter(|total| total.0 > 0)
    }
}

/// Describes the VM of arguments such as `--disk path=…,id=… path=…`: each option has any number of values.
pub(super) fn describe(arguments: &[&str]) -> Description {
    let mut found = Description { vmm: Vmm::CloudHypervisor, ..Description::default() };
    let mut memory = Memory::default();
    let mut devices = Devices::default();
    for (option, value) in values(arguments) {
        let fields = parse(value);
        match option {
            "memory" => memory.add(&fields, false),
            "memory-zone" => memory.add(&fields, true),
            "cpus" => {
                found.cpus = fields.get("boot").and_then(|text| text.parse().ok());
                let max = fields.get("max").map(|text| text.parse().ok());
                found.max_cpus = max.unwrap_or(found.cpus);
            }
            "platform" => {
                found.uuid = fields.get("uuid").and_then(VmUuid::parse).or(found.uuid);
            }
            "disk" => devices.disks.push(disk_of(&fields, devices.disks.len())),
            "net" => devices.nics.push(DomainNic {
                mac: fields.get("mac").map(mac).unwrap_or_default(),
                device: fields.get("tap").map(str::to_owned),
                unnamed: unnamed_tap(&fields, devices.nics.len()),
                model: "virtio".to_owned(),
            }),
            _ => {}
        }
    }
    devices.tidy();
    let total = memory.total();
    (found.memory, found.max_memory) = (total.map(|total| total.0), total.map(|total| total.1));
    Description { devices, ..found }
}

/// What is known of a tap that `tap=` does not name: `fd=3`, `fd=[3,4]`, or nothing.
fn unnamed_tap(fields: &Fields, order: usize) -> Option<UnnamedTap> {
    if ["tap", "socket", "vhost_socket"].iter().any(|key| fields.get(key).is_some()) {
        return None;
    }
    let Some(told) = fields.get("fd") else { return Some(UnnamedTap::Opened(order)) };
    let numbers = told.trim_matches(['[', ']']).split(',').map(str::trim);
    Some(UnnamedTap::Descriptors(numbers.filter_map(|number| number.parse().ok()).collect()))
}

/// Each value with its option: `--disk=a`, `--disk a b`.
fn values<'a>(arguments: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let (mut found, mut option) = (Vec::new(), "");
    for argument in arguments {
        match argument.strip_prefix("--") {
            None if argument.starts_with('-') => option = "",
            // A command line ends with a NUL.
            None if argument.is_empty() => {}
            None => found.push((option, *argument)),
            Some(rest) => match rest.split_once('=') {
                Some((name, value)) => {
                    option = name;
                    found.push((name, value));
                }
                None => option = rest,
            },
        }
    }
    found
}

/// Parses `key=value,…`; a comma between quotes or brackets is part of the value (`OptionParser` of Cloud Hypervisor).
fn parse(value: &str) -> Fields {
    let mut fields = Fields::default();
    let (mut part, mut is_quoted, mut brackets) = (String::new(), false, 0_usize);
    let mut end = |part: &mut String| {
        if let Some((key, value)) = part.split_once('=') {
            fields.set(key, value);
        }
        part.clear();
    };
    for char in value.chars() {
        match char {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted && brackets == 0 => end(&mut part),
            _ => {
                if !is_quoted {
                    match char {
                        '[' => brackets += 1,
                        ']' => brackets = brackets.saturating_sub(1),
                        _ => {}
                    }
                }
                part.push(char);
            }
        }
    }
    end(&mut part);
    fields
}

/// Bytes (`ByteSized` of Cloud Hypervisor's `option_parser`).
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let scale: u64 = match &text[digits.len()..] {
        "" => 1,
        "K" => 1 << 10,
        "M" => 1 << 20,
        "G" => 1 << 30,
        "T" => 1 << 40,
        _ => return None,
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => digits.parse(),
    };
    number.ok()?.checked_mul(scale)
}

fn disk_of(fields: &Fields, at: usize) -> DomainDisk {
    let name = fields.get("id").map_or_else(|| format!("disk{at}"), str::to_owned);
    let told = fields.get("image_type").map(str::to_ascii_lowercase);
    // Without a type the VMM looks at the image's header.
    let is_probed = told.as_deref().is_none_or(|kind| kind == "unknown");
    let format = told.filter(|_| !is_probed).unwrap_or_else(|| "raw".to_owned());
    let path = fields.get("path").filter(|path| !path.is_empty());
    let is_read_only = is_on(fields.get("readonly"));
    let mut disk = disk(&name, path.map(Location::of_path), &format, is_read_only);
    disk.chain_is_in_image = is_probed || format == "qcow2";
    disk.bus = "virtio".to_owned();
    if let (None, Some(socket)) =
        (path, fields.get("socket").or_else(|| fields.get("vhost_socket")))
    {
        (disk.source, disk.format) = (StorageSource::Other, "vhost-user".to_owned());
        disk.resource = Location::of_path(socket).into_text();
    }
    disk
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::inventory::StorageAccess;

    const MIB: u64 = 1 << 20;

    fn described(line: &str) -> Description {
        describe(&line.split(' ').collect::<Vec<_>>())
    }

    fn memory(line: &str) -> (Option<u64>, Option<u64>) {
        let found = described(line);
        let mib = |bytes: Option<u64>| bytes.map(|bytes| bytes / MIB);
        (mib(found.memory), mib(found.max_memory))
    }

    #[test]
    fn memory_is_the_sum_of_the_zones() {
        assert_eq!(memory("--memory size=512M,hotplug_size=1G"), (Some(512), Some(1536)));
        let zones = "id=a,size=1G id=b,size=1G,hotplug_size=1G";
        for line in [
            format!("--memory size=0 --memory-zone {zones}"),
            format!("--memory=size=0 --memory-zone={zones}"),
            format!("--memory-zone {zones} --memory shared=on,size=0"),
            format!("--memory shared=on --memory-zone {}", zones.replace(' ', " --memory-zone ")),
        ] {
            assert_eq!(memory(&line), (Some(2048), Some(3072)), "{line}");
        }
        assert_eq!(
            memory(
                "--memory size=0 --memory-zone size=0x40000000,hotplug_size=2G,hotplugged_size=512M"
            ),
            (Some(1536), Some(3072))
        );
        assert_eq!(memory("--memory size=4T"), (Some(4 << 20), Some(4 << 20)));
        for line in [
            "--memory size=0",
            "--memory shared=on",
            "--api-socket /run/x",
            "--memory size=0 --memory-zone id=a,size=1Q id=b,size=1G",
            "--memory size=0 --memory-zone id=a",
            "--memory size=0 --memory-zone size=17179869184G size=1G",
        ] {
            assert_eq!(memory(line), (None, None), "{line}");
        }
    }

    #[test]
    fn an_image_has_the_type_that_is_told_or_that_its_header_says() {
        let found = described(
            "--disk path=/i/a,image_type=qcow2 path=/i/b,image_type=raw,readonly=on path=/i/c --disk=path=/i/d,image_type=vhdx \
             --disk path=\"/i/e,f\",id=e --disk vhost_user=on,socket=/run/s",
        );
        let disks: Vec<_> = found
            .devices
            .disks
            .iter()
            .map(|of| (&*of.target, &*of.resource, &*of.format, of.source, of.may_have_header()))
            .collect();
        use StorageSource::{Other, Raw, Sparse};
        assert_eq!(
            disks,
            [
                ("disk0", "/i/a", "qcow2", Sparse, true),
                ("disk1", "/i/b", "raw", Raw, false),
                ("disk2", "/i/c", "raw", Raw, true),
                ("disk3", "/i/d", "vhdx", Sparse, true),
                ("e", "/i/e,f", "raw", Raw, true),
                ("disk5", "/run/s", "vhost-user", Other, true),
            ]
        );
        assert_eq!(found.devices.disks[1].access, StorageAccess::ReadOnly);
    }

    #[test]
    fn interfaces_and_cpus() {
        let found = described(
            "--cpus boot=2,max=8,affinity=[0@[1,2]] --net tap=tap0,mac=52:54:00:00:00:01 tap=tap1 --net=tap=tap2",
        );
        assert_eq!((found.cpus, found.max_cpus), (Some(2), Some(8)));
        let taps: Vec<_> =
            found.devices.nics.iter().filter_map(|nic| nic.device.as_deref()).collect();
        assert_eq!(taps, ["tap0", "tap1", "tap2"]);
        let found = described("--net fd=[3,4],mac=52:54:00:00:00:01 fd=5 num_queues=2 socket=/s");
        let unnamed = found.devices.nics.into_iter().map(|nic| nic.unnamed).collect::<Vec<_>>();
        let told = |fds: &[u32]| Some(UnnamedTap::Descriptors(fds.to_vec()));
        assert_eq!(unnamed, [told(&[3, 4]), told(&[5]), Some(UnnamedTap::Opened(2)), None]);
        assert_eq!(described("--cpus boot=2").max_cpus, Some(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_arguments_panic(arguments in prop::collection::vec("(--(disk|net|memory|memory-zone|cpus)=?)|[a-z=,:0-9KMGé\\[\\]\"]{0,16}", 0..8)) {
            let _ = describe(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        }
    }
}

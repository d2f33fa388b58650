//! Parses a VMM's command line into the description of its VM. Accepts any bytes.

use uuid::Uuid;

use super::{
    devices,
    options::{Fields, options},
};
use crate::inventory::{Devices, VmUuid};

/// Longest name that is kept, in bytes. SNMP serves 255.
const MAX_NAME: usize = 4096;

const MIB: u64 = 1 << 20;

/// The program that runs the VM.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Vmm {
    Qemu,
    Firecracker,
    CloudHypervisor,
    #[default]
    Other,
}

/// Values present on the command line; what is absent stays `None`. QEMU's own defaults count as present.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Description {
    pub(super) vmm: Vmm,
    pub(super) name: Option<String>,
    pub(super) uuid: Option<VmUuid>,
    /// Bytes.
    pub(super) memory: Option<u64>,
    /// Bytes, with all memory hot-plugged.
    pub(super) max_memory: Option<u64>,
    pub(super) cpus: Option<u32>,
    pub(super) max_cpus: Option<u32>,
    /// QEMU without KVM: the vCPUs are emulated (TCG).
    pub(super) tcg: bool,
    /// Not a VM: `-machine none`, or a libvirt daemon probing KVM.
    pub(super) no_machine: bool,
    pub(super) devices: Devices,
    /// Path of Firecracker's configuration file, in the VMM's own root.
    pub(super) config_file: Option<String>,
}

/// Parses the content of `/proc/PID/cmdline`: arguments, each terminated by NUL.
pub(super) fn parse(cmdline: &[u8]) -> Description {
    let text = String::from_utf8_lossy(cmdline);
    let mut arguments = text.split('\0');
    let program = arguments.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let arguments: Vec<&str> = arguments.collect();
    match program {
        "qemu-kvm" | "kvm" => qemu(&arguments),
        name if name.starts_with("qemu-system-") => qemu(&arguments),
        // libvirt's virHostCPUGetMSR() creates a VM to read the host's registers.
        "libvirtd" | "virtqemud" => Description { no_machine: true, ..Description::default() },
        name if name.starts_with("firecracker") => firecracker(&arguments),
        name if name.starts_with("cloud-hyperviso") => cloud_hypervisor(&arguments),
        _ => other(&arguments),
    }
}

/// Defaults are those of qemu-system(1): one CPU, 128 MiB, no KVM.
fn qemu(arguments: &[&str]) -> Description {
    let mut found =
        Description { vmm: Vmm::Qemu, devices: devices::qemu(arguments), ..Description::default() };
    let (mut memory, mut max_memory, mut cpus, mut max_cpus) = (128 * MIB, None, 1, None);
    let (mut accelerator, mut smbios_uuid) = (String::new(), None);
    for (option, value) in options(arguments) {
        let fields = Fields::parse(value);
        match option {
            "name" => found.name = fields.get("guest").or_else(|| fields.implied()).map(cut),
            "uuid" => found.uuid = uuid(value),
            "smbios" if fields.get("type") == Some("1") => {
                smbios_uuid = fields.get("uuid").and_then(uuid);
            }
            "m" => {
                memory = fields
                    .implied()
                    .or_else(|| fields.get("size"))
                    .and_then(|text| size(text, MIB))
                    .unwrap_or(memory);
                max_memory = fields.get("maxmem").and_then(|text| size(text, MIB));
            }
            "smp" => {
                let number = |key| fields.get(key).and_then(|text| text.parse::<u32>().ok());
                let topology = ["sockets", "dies", "clusters", "modules", "cores", "threads"]
                    .map(|key| number(key).unwrap_or(1))
                    .iter()
                    .try_fold(1_u32, |product, &count| product.checked_mul(count))
                    .unwrap_or(0);
                let given =
                    fields.implied().and_then(|text| text.parse().ok()).or_else(|| number("cpus"));
                max_cpus = number("maxcpus").or_else(|| (topology > 1).then_some(topology));
                cpus = given.or(max_cpus).unwrap_or(1);
            }
            "accel" => accelerator = fields.first().to_owned(),
            "enable-kvm" => accelerator = "kvm".to_owned(),
            "machine" | "M" => {
                found.no_machine = fields.implied().or_else(|| fields.get("type")) == Some("none");
                if let Some(named) = fields.get("accel") {
                    accelerator = named.to_owned();
                }
            }
            _ => {}
        }
    }
    found.uuid = found.uuid.or(smbios_uuid);
    (found.memory, found.max_memory) = (Some(memory), max_memory.or(Some(memory)));
    (found.cpus, found.max_cpus) = (Some(cpus), Some(max_cpus.unwrap_or(cpus).max(cpus)));
    found.tcg = !accelerator.split(':').any(|name| name == "kvm");
    found
}

/// The devices are in the configuration file.
fn firecracker(arguments: &[&str]) -> Description {
    let mut found = Description { vmm: Vmm::Firecracker, ..Description::default() };
    for (option, value) in options(arguments) {
        match option {
            "id" => {
                found.name = Some(cut(value));
                found.uuid = uuid(value);
            }
            "config-file" => found.config_file = Some(value.to_owned()),
            _ => {}
        }
    }
    found
}

/// Other VMMs, such as kvmtool: `--name` is the only option whose meaning is common to them.
fn other(arguments: &[&str]) -> Description {
    let name = options(arguments)
        .into_iter()
        .find(|&(option, value)| option == "name" && !value.is_empty());
    Description { name: name.map(|(_, value)| cut(value)), ..Description::default() }
}

fn cloud_hypervisor(arguments: &[&str]) -> Description {
    let mut found = Description {
        vmm: Vmm::CloudHypervisor,
        devices: devices::cloud_hypervisor(arguments),
        ..Description::default()
    };
    for (option, value) in options(arguments) {
        let fields = Fields::parse(value);
        match option {
            "memory" => {
                found.memory = fields.get("size").and_then(|text| size(text, 1));
                let more = fields.get("hotplug_size").and_then(|text| size(text, 1)).unwrap_or(0);
                found.max_memory = found.memory.and_then(|memory| memory.checked_add(more));
            }
            "cpus" => {
                found.cpus = fields.get("boot").and_then(|text| text.parse().ok());
                found.max_cpus = fields.get("max").and_then(|text| text.parse().ok());
            }
            "platform" => found.uuid = fields.get("uuid").and_then(uuid),
            _ => {}
        }
    }
    found
}

/// Bytes from a number with a binary suffix, or in units of `unit` bytes without one.
fn size(text: &str, unit: u64) -> Option<u64> {
    let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn uuid(text: &str) -> Option<VmUuid> {
    Uuid::try_parse(text).ok().map(VmUuid::from)
}

/// The name, truncated to [`MAX_NAME`] at a character boundary.
fn cut(name: &str) -> String {
    let mut end = name.len().min(MAX_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse_words(line: &str) -> Description {
        parse(line.split(' ').flat_map(|word| [word, "\0"]).collect::<String>().as_bytes())
    }

    #[test]
    fn qemu_as_libvirt_starts_it() {
        let found = parse_words(
            "/usr/bin/qemu-system-x86_64 -name guest=web,,1,debug-threads=on -S -machine \
             pc-q35-7.2,usb=off,dump-guest-core=off -accel kvm -cpu host -m size=4194304k,slots=16,maxmem=16777216k \
             -smp 2,maxcpus=4,sockets=4,cores=1,threads=1 -uuid 2f5bd8a2-6c1c-4a3b-9d0e-0123456789ab -no-user-config",
        );
        assert_eq!(found.name.as_deref(), Some("web,1"));
        assert_eq!(found.uuid.unwrap().as_bytes()[..4], [0x2f, 0x5b, 0xd8, 0xa2]);
        assert_eq!((found.memory, found.max_memory), (Some(4 << 30), Some(16 << 30)));
        assert_eq!(
            (found.cpus, found.max_cpus, found.tcg, found.no_machine),
            (Some(2), Some(4), false, false)
        );
    }

    #[test]
    fn qemu_as_proxmox_starts_it() {
        let found = parse_words(
            "/usr/bin/kvm -id 100 -name web,debug-threads=on -no-shutdown -smbios \
             type=1,uuid=11111111-2222-3333-4444-555555555555 -smp 4,sockets=1,cores=4,maxcpus=4 -m 4096 \
             -machine type=pc+pve0,accel=kvm",
        );
        assert_eq!(found.name.as_deref(), Some("web"));
        assert_eq!(found.uuid.unwrap().as_bytes()[..2], [0x11, 0x11]);
        assert_eq!((found.memory, found.cpus, found.max_cpus), (Some(4 << 30), Some(4), Some(4)));
        assert!(!found.tcg);
    }

    #[test]
    fn qemu_without_options_has_its_defaults() {
        let found = parse_words("qemu-system-x86_64 -display none");
        assert_eq!((found.memory, found.cpus, found.max_cpus), (Some(128 * MIB), Some(1), Some(1)));
        assert!(found.tcg && found.name.is_none());
        assert!(
            parse_words("qemu-system-x86_64 -S -machine none,accel=kvm:tcg -qmp unix:x").no_machine
        );
        assert!(!parse_words("qemu-system-x86_64 --enable-kvm").tcg);
        assert_eq!(parse_words("qemu-system-x86_64 -smp sockets=2,cores=3").cpus, Some(6));
    }

    #[test]
    fn other_vmms() {
        let found = parse_words("/usr/bin/firecracker --id=vm-1 --api-sock /run/x");
        assert_eq!((found.vmm, found.name.as_deref()), (Vmm::Firecracker, Some("vm-1")));
        let found =
            parse_words("cloud-hypervisor --cpus boot=2,max=8 --memory size=512M,hotplug_size=1G");
        assert_eq!((found.cpus, found.max_cpus), (Some(2), Some(8)));
        assert_eq!((found.memory, found.max_memory), (Some(512 * MIB), Some(1536 * MIB)));
        assert_eq!(parse_words("crosvm run"), Description::default());
        assert_eq!(parse_words("lkvm run --name web -m 64").name.as_deref(), Some("web"));
    }

    #[test]
    fn numbers_that_do_not_fit_are_left_out() {
        assert_eq!(size("18446744073709551615g", 1), None);
        assert_eq!(size("4q", 1), None);
        assert_eq!(uuid("2f5bd8a2"), None);
        assert_eq!(parse_words("qemu-system-x86_64 -smp sockets=65536,cores=65536").cpus, Some(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_options_panic(line in "qemu-system-x(\0-(name|m|smp|uuid|smbios|machine|accel)(\0[a-z=,:0-9é]{0,12})?){0,8}") {
            let _ = parse(line.as_bytes());
        }
    }
}

//! Parses a VMM's command line into the description of its VM. Accepts any bytes.

use super::{cloud_hypervisor, options::options, presence::Intent, qemu};
use crate::inventory::{Devices, VmUuid};

/// Longest name that is kept, in bytes. SNMP serves 255.
const MAX_NAME: usize = 4096;

/// The program that runs the VM.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) enum Vmm {
    Qemu,
    Firecracker,
    CloudHypervisor,
    #[default]
    Other,
}

/// Values present on the command line; what is absent, or not understood, stays `None`. QEMU's own defaults count as present.
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
    /// QEMU with `-S`: its vCPUs wait for a user's word.
    pub(super) starts_stopped: bool,
    /// QEMU writes to temporary files instead of some images (`-snapshot`, `snapshot=on`).
    pub(super) has_temporary_overlays: bool,
    /// Not a VM: `-machine none`.
    pub(super) no_machine: bool,
    /// What its arguments say it is there for.
    pub(super) intent: Intent,
    pub(super) devices: Devices,
    /// Paths of every image that an option of QEMU names, also of those that are no disks.
    pub(super) images: Vec<String>,
    /// Path of Firecracker's configuration file, in the VMM's own root.
    pub(super) config_file: Option<String>,
    /// What could not be read, each with the reason.
    pub(super) gaps: Vec<String>,
}

/// Parses the content of `/proc/PID/cmdline`: arguments, each terminated by NUL. `read` returns the content of a configuration
/// file of QEMU at a path of the process; `None`: it cannot be read.
pub(super) fn parse(cmdline: &[u8], read: &mut dyn FnMut(&str) -> Option<Vec<u8>>) -> Description {
    let text = String::from_utf8_lossy(cmdline);
    let mut arguments = text.split('\0');
    let program = arguments.next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let arguments: Vec<&str> = arguments.collect();
    match program {
        "qemu-kvm" | "kvm" => qemu::describe(program, &arguments, read),
        name if name.starts_with("qemu-system-") => qemu::describe(name, &arguments, read),
        name if name.starts_with("firecracker") => firecracker(&arguments),
        name if name.starts_with("cloud-hyperviso") => cloud_hypervisor::describe(&arguments),
        _ => other(&arguments),
    }
}

/// The devices are in the configuration file.
fn firecracker(arguments: &[&str]) -> Description {
    let mut found = Description { vmm: Vmm::Firecracker, ..Description::default() };
    for (option, value) in options(arguments) {
        match option {
            "id" => {
                found.name = Some(cut(value));
                found.uuid = VmUuid::parse(value);
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

/// The name, truncated to [`MAX_NAME`] at a character boundary.
pub(super) fn cut(name: &str) -> String {
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
        let words: String = line.split(' ').flat_map(|word| [word, "\0"]).collect();
        parse(words.as_bytes(), &mut |_| None)
    }

    #[test]
    fn other_vmms() {
        let found = parse_words("/usr/bin/firecracker --id=vm-1 --api-sock /run/x");
        assert_eq!((found.vmm, found.name.as_deref()), (Vmm::Firecracker, Some("vm-1")));
        let found = parse_words("cloud-hypervisor --cpus boot=2,max=8");
        assert_eq!((found.vmm, found.cpus), (Vmm::CloudHypervisor, Some(2)));
        assert_eq!(parse_words("crosvm run"), Description::default());
        assert_eq!(parse_words("lkvm run --name web -m 64").name.as_deref(), Some("web"));
    }

    #[test]
    fn a_uuid_that_is_none_is_left_out() {
        assert_eq!(VmUuid::parse("2f5bd8a2"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes, &mut |_| None);
        }
    }
}

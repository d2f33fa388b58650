//! What the agent implements of VM-MIB, and where it differs.

use super::super::smi::{Capabilities, Identity, Syntax, Variation};

const UNCOUNTED: &str = "The instance does not exist where neither the kernel nor the hypervisor counts the disk, \
    or where the first answer of the hypervisor has not come yet. 0 while the virtual machine is off.";

const STATES: &[(&str, i32)] = &[
    ("unknown", 1),
    ("preparing", 3),
    ("running", 4),
    ("suspending", 5),
    ("suspended", 6),
    ("resuming", 7),
    ("paused", 8),
    ("migrating", 9),
    ("shuttingdown", 10),
    ("shutdown", 11),
    ("crashed", 12),
];

/// KVMETER-CAPABILITIES-MIB, below netSnmpPlaypen, which net-snmp leaves to everybody for identifiers without a registration.
pub static CAPABILITIES: Capabilities = Capabilities {
    module: "KVMETER-CAPABILITIES-MIB",
    root: "kvmeterCapabilities",
    above: &[("netSnmp", 8072), ("netSnmpExperimental", 9999), ("netSnmpPlaypen", 9999)],
    root_number: 7666,
    identity: Identity {
        organization: "kvmeter",
        contact: "The maintainers of kvmeter.",
        description: "What kvmeter implements of the modules that it serves.",
        revisions: &[("202611270000Z", "The first version.")],
    },
    number: 1,
    name: "kvmeterVmMib",
    product: concat!("kvmeter ", env!("CARGO_PKG_VERSION")),
    description: "VM-MIB of RFC 7666 for virtual machines on KVM. All groups are implemented; the two objects that \
        can be written go back to the configuration of kvmeter when kvmeter or the SNMP agent is initialised again.",
    variations: &[
        Variation::of(
            "vmHvObjectID",
            "0.0, unless the configuration names an identifier; any identifier is accepted there.",
        ),
        Variation::with(
            "vmOperState",
            Syntax::Enumeration(STATES),
            "other(2) does not occur. Of a virtual machine without libvirt only the states that its process shows \
                are known.",
        ),
        Variation::with(
            "vmMinCpuNumber",
            Syntax::Integer32(&[(-1, -1)]),
            "KVM has no lower bound for the number of virtual CPUs.",
        ),
        Variation::of("vmCurMem", "The instance does not exist where the memory is not known."),
        Variation::of(
            "vmUpTime",
            "After a restart of kvmeter, and without libvirt, the time since the process of the virtual machine \
                started. The instance does not exist where that is not known.",
        ),
        Variation::of(
            "vmCpuTime",
            "The instance does not exist where the process of a running virtual machine is not counted.",
        ),
        Variation::of(
            "vmCpuCoreTime",
            "The instance does not exist where the thread of the virtual CPU is not known or not counted.",
        ),
        Variation::of(
            "vmCpuAffinity",
            "There are no instances where the configuration of kvmeter leaves the table out (mib.affinity).",
        ),
        Variation::with(
            "vmStorageParent",
            Syntax::Integer32(&[(0, 0)]),
            "The hrStorageIndex of a file system is known to the SNMP agent only. 0 does not mean that the image is \
                on no file system of hrStorageTable.",
        ),
        Variation::of("vmStorageReadIOs", UNCOUNTED),
        Variation::of("vmStorageWriteIOs", UNCOUNTED),
        Variation::of("vmStorageReadOctets", UNCOUNTED),
        Variation::of("vmStorageWriteOctets", UNCOUNTED),
        Variation::of("vmStorageReadLatency", UNCOUNTED),
        Variation::of("vmStorageWriteLatency", UNCOUNTED),
    ],
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mib::vm_mib::{MODULE, convention::VIRTUAL_MACHINE_OPER_STATE};

    #[test]
    fn variations_are_about_objects_of_the_module_in_their_order() {
        let objects: Vec<_> = MODULE
            .branches
            .iter()
            .flat_map(|branch| branch.object_types())
            .map(|object| object.name)
            .collect();
        let place = |variation: &Variation| {
            let known = objects.iter().position(|name| *name == variation.object);
            known.unwrap_or_else(|| panic!("{}", variation.object))
        };
        assert!(CAPABILITIES.variations.iter().map(place).is_sorted_by(|one, other| one < other));
        let Syntax::Enumeration(all) = VIRTUAL_MACHINE_OPER_STATE.syntax else { panic!() };
        let others: Vec<_> = all.iter().filter(|state| !STATES.contains(state)).collect();
        assert_eq!(others, [&("other", 2)]);
    }

    #[test]
    fn it_prints_in_short_lines() {
        let text = CAPABILITIES.text(&MODULE);
        for line in text.lines() {
            assert!(line.len() <= 72 && line == line.trim_end() && line.is_ascii(), "{line:?}");
        }
        assert_eq!(text.matches('"').count() % 2, 0);
        assert_eq!(CAPABILITIES.id().unwrap().to_string(), "1.3.6.1.4.1.8072.9999.9999.7666.1");
    }
}

//! Textual conventions that VM-MIB defines.

use super::super::smi::{
    Convention, Syntax,
    convention::{NON_NEGATIVE, POSITIVE},
};

/// All of them, in the order of the printed module.
pub static VM_MIB_CONVENTIONS: &[&Convention] = &[
    &VIRTUAL_MACHINE_INDEX,
    &VIRTUAL_MACHINE_INDEX_OR_ZERO,
    &VIRTUAL_MACHINE_ADMIN_STATE,
    &VIRTUAL_MACHINE_OPER_STATE,
    &VIRTUAL_MACHINE_AUTO_START,
    &VIRTUAL_MACHINE_PERSISTENT,
    &VIRTUAL_MACHINE_CPU_INDEX,
    &VIRTUAL_MACHINE_STORAGE_INDEX,
    &VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE,
    &VIRTUAL_MACHINE_STORAGE_ACCESS,
    &VIRTUAL_MACHINE_NETWORK_INDEX,
    &VIRTUAL_MACHINE_LIST,
];

/// vmIndex.
pub static VIRTUAL_MACHINE_INDEX: Convention = Convention {
    name: "VirtualMachineIndex",
    module: None,
    hint: Some("d"),
    syntax: POSITIVE,
    description: "The number of a virtual machine on its hypervisor. It does not change before the \
        hypervisor is initialised again.",
};

/// vmStorageVmIndex.
pub static VIRTUAL_MACHINE_INDEX_OR_ZERO: Convention = Convention {
    name: "VirtualMachineIndexOrZero",
    module: None,
    hint: Some("d"),
    syntax: NON_NEGATIVE,
    description: "A VirtualMachineIndex, or 0. Each object of this type says what its 0 means.",
};

/// vmAdminState.
pub static VIRTUAL_MACHINE_ADMIN_STATE: Convention = Convention {
    name: "VirtualMachineAdminState",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[
        ("running", 1),
        ("suspended", 2),
        ("paused", 3),
        ("shutdown", 4),
    ]),
    description: "The state that a virtual machine is meant to be in: running(1), executing; \
        suspended(2), its memory and CPU state on disk until it runs again; paused(3), in memory, but \
        given no CPU time; shutdown(4), off.",
};

/// vmOperState.
pub static VIRTUAL_MACHINE_OPER_STATE: Convention = Convention {
    name: "VirtualMachineOperState",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[
        ("unknown", 1),
        ("other", 2),
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
    ]),
    description: "The state that a virtual machine is in: unknown(1), not reported by the hypervisor; \
        other(2), none of these; preparing(3), being set up; running(4), executing; \
        suspending(5), on its way from running(4) to suspended(6); suspended(6), saved to disk; \
        resuming(7), on its way back from suspended(6) to running(4); paused(8), in memory without CPU \
        time; migrating(9), on its way between two hypervisors; shuttingdown(10), on its way from \
        running(4) to shutdown(11); shutdown(11), off, with nothing of it in memory; crashed(12), \
        stopped by a failure.",
};

/// vmAutoStart.
pub static VIRTUAL_MACHINE_AUTO_START: Convention = Convention {
    name: "VirtualMachineAutoStart",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[("unknown", 1), ("enabled", 2), ("disabled", 3)]),
    description: "Whether the hypervisor starts a virtual machine by itself when it is initialised: \
        enabled(2) or disabled(3); unknown(1) where that is not known.",
};

/// vmPersistent.
pub static VIRTUAL_MACHINE_PERSISTENT: Convention = Convention {
    name: "VirtualMachinePersistent",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[("unknown", 1), ("persistent", 2), ("transient", 3)]),
    description: "Whether a virtual machine is still defined once it is off: persistent(2), it is; \
        transient(3), it is gone; unknown(1) where that is not known.",
};

/// vmCpuIndex.
pub static VIRTUAL_MACHINE_CPU_INDEX: Convention = Convention {
    name: "VirtualMachineCpuIndex",
    module: None,
    hint: Some("d"),
    syntax: POSITIVE,
    description: "The number of a virtual CPU within its virtual machine. It does not change before \
        the hypervisor is initialised again.",
};

/// vmStorageIndex.
pub static VIRTUAL_MACHINE_STORAGE_INDEX: Convention = Convention {
    name: "VirtualMachineStorageIndex",
    module: None,
    hint: Some("d"),
    syntax: POSITIVE,
    description: "The number of a virtual disk within its virtual machine. It does not change before \
        the hypervisor is initialised again.",
};

/// vmStorageSourceType.
pub static VIRTUAL_MACHINE_STORAGE_SOURCE_TYPE: Convention = Convention {
    name: "VirtualMachineStorageSourceType",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[
        ("unknown", 1),
        ("other", 2),
        ("block", 3),
        ("raw", 4),
        ("sparse", 5),
        ("network", 6),
    ]),
    description: "What holds the data of a virtual disk: a block(3) device of the host, a file in \
        raw(4) format, a sparse(5) file that grows as it is written, or a service on the network(6); \
        other(2) is none of these, unknown(1) is not known.",
};

/// vmStorageAccess.
pub static VIRTUAL_MACHINE_STORAGE_ACCESS: Convention = Convention {
    name: "VirtualMachineStorageAccess",
    module: None,
    hint: None,
    syntax: Syntax::Enumeration(&[("unknown", 1), ("readwrite", 2), ("readonly", 3)]),
    description: "What a virtual machine may do with a virtual disk: readwrite(2) or readonly(3); \
        unknown(1) where that is not known.",
};

/// vmNetworkIndex.
pub static VIRTUAL_MACHINE_NETWORK_INDEX: Convention = Convention {
    name: "VirtualMachineNetworkIndex",
    module: None,
    hint: Some("d"),
    syntax: POSITIVE,
    description: "The number of a virtual network interface within its virtual machine. It does not \
        change before the hypervisor is initialised again.",
};

/// vmAffectedVMs.
pub static VIRTUAL_MACHINE_LIST: Convention = Convention {
    name: "VirtualMachineList",
    module: None,
    hint: Some("1x"),
    syntax: Syntax::OctetString(&[]),
    description: "A set of virtual machines as a bitmap of their vmIndex values. The most significant \
        bit of the first octet stands for vmIndex 1, its least significant bit for 8, the next octet \
        for 9 to 16, and so on. A bit that is 1 puts its virtual machine into the set.",
};

#[cfg(test)]
mod tests {
    use crate::inventory::{AdminState, AutoStart, OperState, Persistence};

    use super::*;

    /// The enumerations of the inventory carry the MIB's numbers, so that a getter can pass them on.
    #[test]
    fn the_states_of_the_inventory_have_the_numbers_of_the_conventions() {
        let check = |convention: &Convention, states: &[(String, i32)]| {
            let Syntax::Enumeration(names) = convention.syntax else {
                panic!("{}", convention.name)
            };
            let names: Vec<_> = names.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
            assert_eq!(names, states, "{}", convention.name);
        };
        macro_rules! named {
            ($($state:path),+) => { &[$((format!("{:?}", $state).to_lowercase(), $state as i32)),+] };
        }
        use {AdminState as A, AutoStart as S, OperState as O, Persistence as P};
        check(
            &VIRTUAL_MACHINE_ADMIN_STATE,
            named![A::Running, A::Suspended, A::Paused, A::Shutdown],
        );
        check(
            &VIRTUAL_MACHINE_OPER_STATE,
            named![
                O::Unknown,
                O::Other,
                O::Preparing,
                O::Running,
                O::Suspending,
                O::Suspended,
                O::Resuming,
                O::Paused,
                O::Migrating,
                O::Shuttingdown,
                O::Shutdown,
                O::Crashed
            ],
        );
        check(&VIRTUAL_MACHINE_AUTO_START, named![S::Unknown, S::Enabled, S::Disabled]);
        check(&VIRTUAL_MACHINE_PERSISTENT, named![P::Unknown, P::Persistent, P::Transient]);
    }
}

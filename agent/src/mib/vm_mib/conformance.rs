//! Groups and compliance statements.

use super::{
    super::smi::{Compliance, Group, Members},
    affinity, hypervisor, network, nodes, notification, storage, vcpu, vm,
};

/// All groups, ascending.
pub static GROUPS: &[&Group] = &[
    &HYPERVISOR,
    &VIRTUAL_MACHINE,
    &CPU,
    &CPU_AFFINITY,
    &STORAGE,
    &NETWORK,
    &PER_VM_NOTIFICATIONS,
    &BULK_VARIABLES,
    &BULK_NOTIFICATIONS,
];

/// vmHypervisorGroup.
pub static HYPERVISOR: Group = Group {
    parent: &nodes::GROUPS,
    number: 1,
    name: "vmHypervisorGroup",
    members: Members::Objects(&[
        &hypervisor::HYPERVISOR,
        &hypervisor::TOTALS,
        &notification::SWITCHES,
    ]),
    description: "Objects that describe the hypervisor.",
};

/// vmVirtualMachineGroup.
pub static VIRTUAL_MACHINE: Group = Group {
    parent: &nodes::GROUPS,
    number: 2,
    name: "vmVirtualMachineGroup",
    members: Members::Objects(&[&vm::TABLE]),
    description: "Objects that describe the virtual machines.",
};

/// vmCpuGroup.
pub static CPU: Group = Group {
    parent: &nodes::GROUPS,
    number: 3,
    name: "vmCpuGroup",
    members: Members::Objects(&[&vcpu::TABLE]),
    description: "Objects that describe the virtual CPUs.",
};

/// vmCpuAffinityGroup.
pub static CPU_AFFINITY: Group = Group {
    parent: &nodes::GROUPS,
    number: 4,
    name: "vmCpuAffinityGroup",
    members: Members::Objects(&[&affinity::TABLE]),
    description: "Objects that describe on which CPUs of the host virtual CPUs may run.",
};

/// vmStorageGroup.
pub static STORAGE: Group = Group {
    parent: &nodes::GROUPS,
    number: 5,
    name: "vmStorageGroup",
    members: Members::Objects(&[&storage::TABLE]),
    description: "Objects that describe the disks of the virtual machines.",
};

/// vmNetworkGroup.
pub static NETWORK: Group = Group {
    parent: &nodes::GROUPS,
    number: 6,
    name: "vmNetworkGroup",
    members: Members::Objects(&[&network::TABLE]),
    description: "Objects that describe the network interfaces of the virtual machines.",
};

/// vmPerVMNotificationOptionalGroup.
pub static PER_VM_NOTIFICATIONS: Group = Group {
    parent: &nodes::GROUPS,
    number: 7,
    name: "vmPerVMNotificationOptionalGroup",
    members: Members::Notifications(&notification::PER_VM),
    description: "The notifications of single virtual machines.",
};

/// vmBulkNotificationsVariablesGroup.
pub static BULK_VARIABLES: Group = Group {
    parent: &nodes::GROUPS,
    number: 8,
    name: "vmBulkNotificationsVariablesGroup",
    members: Members::Objects(&[&notification::BULK_VARIABLES]),
    description: "Objects that the notifications of vmBulkNotificationOptionalGroup carry.",
};

/// vmBulkNotificationOptionalGroup.
pub static BULK_NOTIFICATIONS: Group = Group {
    parent: &nodes::GROUPS,
    number: 9,
    name: "vmBulkNotificationOptionalGroup",
    members: Members::Notifications(&notification::BULK),
    description: "The notifications of several virtual machines at once.",
};

const MANDATORY: &[&Group] =
    &[&HYPERVISOR, &VIRTUAL_MACHINE, &CPU, &CPU_AFFINITY, &STORAGE, &NETWORK];

/// All compliance statements, ascending.
pub static COMPLIANCES: &[Compliance] = &[
    Compliance {
        parent: &nodes::COMPLIANCES,
        number: 1,
        name: "vmFullCompliances",
        description: "For agents in which the read-write objects can be written.",
        mandatory: MANDATORY,
        conditional: &[
            (
                &PER_VM_NOTIFICATIONS,
                "Optional; without it, vmPerVMNotificationsEnabled is always false(2).",
            ),
            (
                &BULK_VARIABLES,
                "For agents that have vmBulkNotificationOptionalGroup. RFC 7666 names \
                    vmPerVMNotificationOptionalGroup here, whose notifications do not carry this \
                    object.",
            ),
            (
                &BULK_NOTIFICATIONS,
                "Optional; without it, vmBulkNotificationsEnabled is always false(2).",
            ),
        ],
        may_be_read_only: &[],
    },
    Compliance {
        parent: &nodes::COMPLIANCES,
        number: 2,
        name: "vmReadOnlyCompliances",
        description: "For agents that can only be read.",
        mandatory: MANDATORY,
        conditional: &[],
        may_be_read_only: &[&notification::SWITCHES],
    },
];

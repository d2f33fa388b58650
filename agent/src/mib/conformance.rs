//! Groups and compliance statements.

use super::{
    affinity, network,
    notification::{self, Notification},
    schema::{Access, Object},
    storage, vcpu, vm,
};

/// A group: { vmGroups `number` }.
#[derive(Debug)]
pub struct Group {
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// What belongs to it.
    pub members: Members,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

/// The members of a group.
#[derive(Clone, Copy, Debug)]
pub enum Members {
    /// OBJECT-GROUP of these objects.
    Objects(&'static [&'static str]),
    /// OBJECT-GROUP of all columns but those that are only index.
    Columns(&'static [Object]),
    /// NOTIFICATION-GROUP.
    Notifications(&'static [Notification]),
}

impl Members {
    /// Their descriptors, in order.
    #[must_use]
    pub fn names(&self) -> Vec<&'static str> {
        match *self {
            Self::Objects(names) => names.to_vec(),
            Self::Columns(columns) => {
                let accessible = columns.iter().filter(|c| c.access != Access::NotAccessible);
                accessible.map(|column| column.name).collect()
            }
            Self::Notifications(notifications) => notifications.iter().map(|n| n.name).collect(),
        }
    }
}

/// All groups, ascending.
pub static GROUPS: &[Group] = &[
    Group {
        number: 1,
        name: "vmHypervisorGroup",
        members: Members::Objects(&[
            "vmHvSoftware",
            "vmHvVersion",
            "vmHvObjectID",
            "vmHvUpTime",
            "vmNumber",
            "vmTableLastChange",
            "vmPerVMNotificationsEnabled",
            "vmBulkNotificationsEnabled",
        ]),
        description: "What tells of the hypervisor.",
    },
    Group {
        number: 2,
        name: "vmVirtualMachineGroup",
        members: Members::Columns(vm::TABLE.columns),
        description: "What tells of the virtual machines.",
    },
    Group {
        number: 3,
        name: "vmCpuGroup",
        members: Members::Columns(vcpu::TABLE.columns),
        description: "What tells of the virtual CPUs.",
    },
    Group {
        number: 4,
        name: "vmCpuAffinityGroup",
        members: Members::Columns(affinity::TABLE.columns),
        description: "What tells where virtual CPUs may run.",
    },
    Group {
        number: 5,
        name: "vmStorageGroup",
        members: Members::Columns(storage::TABLE.columns),
        description: "What tells of the disks of the virtual machines.",
    },
    Group {
        number: 6,
        name: "vmNetworkGroup",
        members: Members::Columns(network::TABLE.columns),
        description: "What tells of the network interfaces of the virtual machines.",
    },
    Group {
        number: 7,
        name: "vmPerVMNotificationOptionalGroup",
        members: Members::Notifications(notification::PER_VM),
        description: "The notifications of single virtual machines.",
    },
    Group {
        number: 8,
        name: "vmBulkNotificationsVariablesGroup",
        members: Members::Objects(&["vmAffectedVMs"]),
        description: "What the notifications of vmBulkNotificationOptionalGroup carry.",
    },
    Group {
        number: 9,
        name: "vmBulkNotificationOptionalGroup",
        members: Members::Notifications(notification::BULK),
        description: "The notifications of several virtual machines at once.",
    },
];

/// A compliance statement for this module: { vmCompliances `number` }.
#[derive(Debug)]
pub struct Compliance {
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
    /// Names of the groups that an agent must have.
    pub mandatory: &'static [&'static str],
    /// Names of groups that it may have, and when.
    pub conditional: &'static [(&'static str, &'static str)],
    /// Names of the read-write objects that it need not let be written.
    pub may_be_read_only: &'static [&'static str],
}

const MANDATORY: &[&str] = &[
    "vmHypervisorGroup",
    "vmVirtualMachineGroup",
    "vmCpuGroup",
    "vmCpuAffinityGroup",
    "vmStorageGroup",
    "vmNetworkGroup",
];

/// All compliance statements, ascending.
pub static COMPLIANCES: &[Compliance] = &[
    Compliance {
        number: 1,
        name: "vmFullCompliances",
        description: "For agents that let the read-write objects be written.",
        mandatory: MANDATORY,
        conditional: &[
            (
                "vmPerVMNotificationOptionalGroup",
                "An agent may do without; vmPerVMNotificationsEnabled is then always false(2).",
            ),
            (
                "vmBulkNotificationsVariablesGroup",
                "For agents that have vmBulkNotificationOptionalGroup. RFC 7666 names \
                    vmPerVMNotificationOptionalGroup here, whose notifications do not carry this \
                    object.",
            ),
            (
                "vmBulkNotificationOptionalGroup",
                "An agent may do without; vmBulkNotificationsEnabled is then always false(2).",
            ),
        ],
        may_be_read_only: &[],
    },
    Compliance {
        number: 2,
        name: "vmReadOnlyCompliances",
        description: "For agents that can only be read.",
        mandatory: MANDATORY,
        conditional: &[],
        may_be_read_only: &["vmPerVMNotificationsEnabled", "vmBulkNotificationsEnabled"],
    },
];

#[cfg(test)]
mod tests {
    use super::{
        super::schema::{Branch, TREE},
        *,
    };

    #[test]
    fn every_accessible_object_is_in_exactly_one_group() {
        let mut grouped: Vec<_> = GROUPS
            .iter()
            .filter(|group| !matches!(group.members, Members::Notifications(_)))
            .flat_map(|group| group.members.names())
            .collect();
        let mut accessible: Vec<_> = TREE
            .iter()
            .flat_map(Branch::objects)
            .filter(|object| object.access != Access::NotAccessible)
            .map(|object| object.name)
            .collect();
        grouped.sort_unstable();
        accessible.sort_unstable();
        assert_eq!(grouped, accessible);
    }

    #[test]
    fn notifications_carry_objects_of_the_module() {
        let objects: Vec<_> = TREE.iter().flat_map(Branch::objects).map(|o| o.name).collect();
        for notification in notification::PER_VM.iter().chain(notification::BULK) {
            for name in notification.objects {
                assert!(objects.contains(name), "{name} in {}", notification.name);
            }
        }
    }

    #[test]
    fn compliances_name_groups_of_the_module() {
        for compliance in COMPLIANCES {
            let conditional = compliance.conditional.iter().map(|(name, _)| name);
            for name in compliance.mandatory.iter().chain(conditional) {
                assert!(GROUPS.iter().any(|group| group.name == *name), "{name}");
            }
        }
    }
}

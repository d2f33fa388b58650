//! The nodes above the objects.

use super::super::smi::Node;

pub(super) static VM_MIB: Node = Node::root("VM-MIB", "vmMIB");
pub(super) static NOTIFICATIONS: Node = Node::below(&VM_MIB, 0, "vmNotifications");
pub(super) static OBJECTS: Node = Node::below(&VM_MIB, 1, "vmObjects");
pub(super) static CONFORMANCE: Node = Node::below(&VM_MIB, 2, "vmConformance");
pub(super) static HYPERVISOR: Node = Node::below(&OBJECTS, 1, "vmHypervisor");
pub(super) static COMPLIANCES: Node = Node::below(&CONFORMANCE, 1, "vmCompliances");
pub(super) static GROUPS: Node = Node::below(&CONFORMANCE, 2, "vmGroups");

//! vmNetworkTable.

use crate::snmp::Value;

use super::{
    convention::{
        ADMIN_STRING, INTERFACE_INDEX_OR_ZERO, PHYS_ADDRESS, VIRTUAL_MACHINE_NETWORK_INDEX,
    },
    convert::{admin_string_cut, integer32_saturating},
    schema::{Getter, Object, Syntax, Table},
};

/// One row per network interface of a VM.
pub const TABLE: Table = Table {
    name: "vmNetworkTable",
    row: "vmNetworkEntry",
    index: &["vmIndex", "vmNetworkIndex"],
    description: "The network interfaces of the virtual machines.",
    row_description: "One virtual network interface.",
    columns: COLUMNS,
};

const COLUMNS: &[Object] = &[
    Object::index(
        1,
        "vmNetworkIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_NETWORK_INDEX),
        "The number of this virtual network interface.",
    ),
    Object::read_only(
        2,
        "vmNetworkIfIndex",
        Syntax::Convention(&INTERFACE_INDEX_OR_ZERO),
        "The ifIndex under which the host's ifTable has this virtual interface; 0 where it has not.",
        Getter::Nic(|_, row| Some(Value::Integer(integer32_saturating(row.nic.if_index)))),
    ),
    Object::read_only(
        3,
        "vmNetworkParent",
        Syntax::Convention(&INTERFACE_INDEX_OR_ZERO),
        "The ifIndex of the physical interface that this virtual interface reaches the network \
            through; 0 where there is none in ifTable.",
        Getter::Nic(|_, row| Some(Value::Integer(integer32_saturating(row.nic.parent_if_index)))),
    ),
    Object::read_only(
        4,
        "vmNetworkModel",
        ADMIN_STRING,
        "The network card that the virtual machine sees, virtio or e1000 for instance. Empty where \
            it is not known.",
        Getter::Nic(|_, row| Some(Value::OctetString(admin_string_cut(&row.nic.model)))),
    ),
    Object::read_only(
        5,
        "vmNetworkPhysAddress",
        Syntax::Convention(&PHYS_ADDRESS),
        "The link-layer address of the virtual interface, for Ethernet its MAC address. Of zero \
            length where it is not known.",
        Getter::Nic(|_, row| Some(Value::OctetString(&row.nic.phys_address))),
    ),
];

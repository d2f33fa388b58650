//! vmNetworkTable.

use crate::{snmp::Value, values};

use super::{
    super::{
        context::{
            Snapshot,
            convert::{admin_string_cut, index_or_zero_saturating},
        },
        smi::{
            Indexed, Object, Syntax, Table, TableType,
            convention::{ADMIN_STRING, INTERFACE_INDEX_OR_ZERO, PHYS_ADDRESS},
        },
    },
    convention::VIRTUAL_MACHINE_NETWORK_INDEX,
    nodes,
    rows::Nics,
    vm,
};

/// One row per network interface of a VM.
pub static TABLE: Table<Snapshot, Nics> = Table {
    table_type: TableType {
        parent: &nodes::OBJECTS,
        number: 8,
        name: "vmNetworkTable",
        row: "vmNetworkEntry",
        index: Indexed::Below(&vm::TABLE),
        description: "The network interfaces of the virtual machines.",
        row_description: "One virtual network interface.",
    },
    columns: COLUMNS,
};

type Column = Object<Snapshot, Nics>;

const COLUMNS: &[Column] = &[
    Column::index(
        1,
        "vmNetworkIndex",
        Syntax::Convention(&VIRTUAL_MACHINE_NETWORK_INDEX),
        "The number of this virtual network interface.",
    ),
    Column::read_only(
        2,
        "vmNetworkIfIndex",
        Syntax::Convention(&INTERFACE_INDEX_OR_ZERO),
        "The ifIndex of this virtual interface in the host's ifTable; 0 where it has none.",
        |_, row| Some(Value::Integer(index_or_zero_saturating(values::nic_if_index(row.nic)))),
    ),
    Column::read_only(
        3,
        "vmNetworkParent",
        Syntax::Convention(&INTERFACE_INDEX_OR_ZERO),
        "The ifIndex of the physical interface that this virtual interface reaches the network \
            through; 0 where there is none in ifTable.",
        |_, row| {
            let parent = values::nic_parent_if_index(row.nic);
            Some(Value::Integer(index_or_zero_saturating(parent)))
        },
    ),
    Column::read_only(
        4,
        "vmNetworkModel",
        ADMIN_STRING,
        "The network card that the virtual machine sees, virtio or e1000 for instance. Empty where \
            it is not known.",
        |_, row| {
            let model = values::nic_model(row.nic).unwrap_or_default();
            Some(Value::OctetString(admin_string_cut(model)))
        },
    ),
    Column::read_only(
        5,
        "vmNetworkPhysAddress",
        Syntax::Convention(&PHYS_ADDRESS),
        "The link-layer address of the virtual interface, for Ethernet its MAC address. Of zero \
            length where it is not known.",
        |_, row| {
            let address = values::nic_phys_address(row.nic).unwrap_or_default();
            Some(Value::OctetString(address))
        },
    ),
];

//! The network interfaces of a VM.

use super::known;
use crate::inventory::{IfIndex, Nic};

/// Name of the host's interface, as the VM's own description or its descriptors have it; `None` = neither does.
#[must_use]
pub fn nic_device(nic: &Nic) -> Option<&str> {
    nic.device.as_deref()
}

/// ifIndex of the host's interface that carries the VM's; `None` = there is none in the host's interface table.
#[must_use]
pub const fn nic_if_index(nic: &Nic) -> Option<u32> {
    known_index(nic.if_index)
}

/// ifIndex of the physical interface, or bond, through which the VM's interface reaches the network; `None` = there is none
/// in the host's interface table.
#[must_use]
pub const fn nic_parent_if_index(nic: &Nic) -> Option<u32> {
    known_index(nic.parent)
}

/// Why one of these two numbers is absent; `None` = both are there.
#[must_use]
pub const fn nic_why_absent(nic: &Nic) -> Option<&'static str> {
    match (nic.if_index, nic.parent) {
        (IfIndex::Absent(why), _) | (_, IfIndex::Absent(why)) => Some(why),
        _ => None,
    }
}

/// Model of the card in the guest, such as `virtio`; `None` = no source reports it.
#[must_use]
pub fn nic_model(nic: &Nic) -> Option<&str> {
    known(&nic.model)
}

/// Link-layer address in the guest; `None` = no source reports it.
#[must_use]
pub fn nic_phys_address(nic: &Nic) -> Option<&[u8]> {
    Some(nic.phys_address.as_slice()).filter(|address| !address.is_empty())
}

const fn known_index(if_index: IfIndex) -> Option<u32> {
    match if_index {
        IfIndex::Is(if_index) => Some(if_index),
        IfIndex::Absent(_) => None,
    }
}

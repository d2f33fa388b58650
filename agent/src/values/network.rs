//! The network interfaces of a VM.

use super::known;
use crate::inventory::Nic;

/// ifIndex of the host's interface that carries the VM's; `None` = there is none in the host's interface table.
#[must_use]
pub fn nic_if_index(nic: &Nic) -> Option<u32> {
    known_index(nic.if_index)
}

/// ifIndex of the physical interface, or bond, through which the VM's interface reaches the network; `None` = there is none
/// in the host's interface table.
#[must_use]
pub fn nic_parent_if_index(nic: &Nic) -> Option<u32> {
    known_index(nic.parent_if_index)
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

/// 0 is no ifIndex (RFC 2863).
fn known_index(if_index: u32) -> Option<u32> {
    Some(if_index).filter(|&index| index != 0)
}

//! The host, and all its VMs together.

use super::Moment;
use crate::inventory::Hypervisor;

/// Name, version and object identifier of the hypervisor: libvirt's, else KVM and the kernel's release. The identifier is
/// configured.
#[must_use]
pub fn hypervisor<'a>(moment: Moment<'a>) -> &'a Hypervisor {
    &moment.inventory.hypervisor
}

/// Time since the hypervisor was initialised in ns, by `CLOCK_BOOTTIME`: KVM is part of the host's kernel, so this is the
/// time since the host booted. Never absent.
#[must_use]
pub fn host_up_time_ns(moment: Moment<'_>) -> u64 {
    moment.readings.since_boot_ns()
}

/// Number of VMs, in whatever state. Never absent.
#[must_use]
pub fn vm_count(moment: Moment<'_>) -> usize {
    moment.inventory.vms.len()
}

/// What [`host_up_time_ns`] was when a VM was last added or removed; 0 = never.
#[must_use]
pub const fn table_last_change_ns(moment: Moment<'_>) -> u64 {
    moment.inventory.last_change_ns
}

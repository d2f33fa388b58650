//! The rows of each table, found by binary search in the inventory. No table is ever built.

use crate::inventory::{Disk, Inventory, Nic, Vcpu, Vm};

/// Sub-identifiers of the longest index, vmCpuAffinityTable's.
pub(super) const MAX_INDEX_LEN: usize = 3;

/// A row whose index has `N` sub-identifiers.
pub(super) trait Row<'a, const N: usize>: Copy {
    /// The first row whose index is `at` or after it.
    fn at_or_after(inventory: &'a Inventory, at: [u32; N]) -> Option<Self>;

    /// The row's index.
    fn index(self) -> [u32; N];
}

/// Where the instances of one object begin that follow `tail`, the sub-identifiers of a name after the
/// object's own; `include` counts `tail` itself in. `None`: all come before.
pub(super) fn lower_bound<const N: usize>(tail: &[u32], include: bool) -> Option<[u32; N]> {
    let mut at = [0; N];
    let used = tail.len().min(N);
    at[..used].copy_from_slice(&tail[..used]);
    // A shorter name is the prefix of the instances that begin with it, and comes before them; a longer
    // one comes after the instance that it begins with.
    let is_past = tail.len() > N || (tail.len() == N && !include);
    if is_past { successor(at) } else { Some(at) }
}

/// The index directly after `index`.
pub(super) fn successor<const N: usize>(mut index: [u32; N]) -> Option<[u32; N]> {
    for part in index.iter_mut().rev() {
        *part = part.wrapping_add(1);
        if *part != 0 {
            return Some(index);
        }
    }
    None
}

/// The one instance of a scalar.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Row<'_, 1> for Scalar {
    fn at_or_after(_: &Inventory, at: [u32; 1]) -> Option<Self> {
        (at == [0]).then_some(Self)
    }

    fn index(self) -> [u32; 1] {
        [0]
    }
}

impl<'a> Row<'a, 1> for &'a Vm {
    fn at_or_after(inventory: &'a Inventory, [vm]: [u32; 1]) -> Option<Self> {
        vms_from(inventory, vm).next()
    }

    fn index(self) -> [u32; 1] {
        [self.index.0]
    }
}

/// A row of vmCpuTable.
#[derive(Clone, Copy, Debug)]
pub(super) struct VcpuRow<'a> {
    pub(super) vm: &'a Vm,
    pub(super) vcpu: &'a Vcpu,
}

impl<'a> Row<'a, 2> for VcpuRow<'a> {
    fn at_or_after(inventory: &'a Inventory, [vm, vcpu]: [u32; 2]) -> Option<Self> {
        vms_from(inventory, vm).find_map(|row| {
            let vcpu = vcpus_from(row, if row.index.0 == vm { vcpu } else { 0 }).first()?;
            Some(Self { vm: row, vcpu })
        })
    }

    fn index(self) -> [u32; 2] {
        [self.vm.index.0, cpu_index(self.vcpu)]
    }
}

/// A row of vmCpuAffinityTable.
#[derive(Clone, Copy, Debug)]
pub(super) struct AffinityRow<'a> {
    pub(super) vm: &'a Vm,
    pub(super) vcpu: &'a Vcpu,
    /// Number of the host's CPU.
    pub(super) cpu: u32,
}

impl<'a> Row<'a, 3> for AffinityRow<'a> {
    fn at_or_after(inventory: &'a Inventory, [vm, vcpu, cpu]: [u32; 3]) -> Option<Self> {
        let first_cpu = *inventory.cpus.first()?;
        let row = VcpuRow::at_or_after(inventory, [vm, vcpu])?;
        if row.index() != [vm, vcpu] {
            return Some(Self { vm: row.vm, vcpu: row.vcpu, cpu: first_cpu });
        }
        let number = cpu.saturating_sub(FIRST_PROCESSOR);
        let from = inventory.cpus.partition_point(|&cpu| cpu < number);
        match inventory.cpus.get(from) {
            Some(&cpu) => Some(Self { vm: row.vm, vcpu: row.vcpu, cpu }),
            None => {
                let row = VcpuRow::at_or_after(inventory, successor(row.index())?)?;
                Some(Self { vm: row.vm, vcpu: row.vcpu, cpu: first_cpu })
            }
        }
    }

    fn index(self) -> [u32; 3] {
        // The inventory's CPU numbers end with the kernel's NR_CPUS, far below.
        [self.vm.index.0, cpu_index(self.vcpu), FIRST_PROCESSOR.saturating_add(self.cpu)]
    }
}

/// hrDeviceIndex of the first processor in net-snmp's HOST-RESOURCES-MIB; CPU number n has this plus n
/// (`HRDEV_PROC << HRDEV_TYPE_SHIFT`, agent/mibgroup/host/hr_device.h and hr_proc.c).
pub(super) const FIRST_PROCESSOR: u32 = 3 << 16;

/// A row of vmStorageTable.
#[derive(Clone, Copy, Debug)]
pub(super) struct DiskRow<'a> {
    pub(super) vm: &'a Vm,
    pub(super) disk: &'a Disk,
}

impl<'a> Row<'a, 2> for DiskRow<'a> {
    fn at_or_after(inventory: &'a Inventory, [vm, disk]: [u32; 2]) -> Option<Self> {
        let (vm, disk) = part_from(inventory, [vm, disk], |vm| &vm.disks, |disk| disk.index)?;
        Some(Self { vm, disk })
    }

    fn index(self) -> [u32; 2] {
        [self.vm.index.0, self.disk.index]
    }
}

/// A row of vmNetworkTable.
#[derive(Clone, Copy, Debug)]
pub(super) struct NicRow<'a> {
    pub(super) vm: &'a Vm,
    pub(super) nic: &'a Nic,
}

impl<'a> Row<'a, 2> for NicRow<'a> {
    fn at_or_after(inventory: &'a Inventory, [vm, nic]: [u32; 2]) -> Option<Self> {
        let (vm, nic) = part_from(inventory, [vm, nic], |vm| &vm.nics, |nic| nic.index)?;
        Some(Self { vm, nic })
    }

    fn index(self) -> [u32; 2] {
        [self.vm.index.0, self.nic.index]
    }
}

/// The first part of a VM whose index and that of its VM are these or after them.
fn part_from<'a, P>(
    inventory: &'a Inventory,
    [vm, part]: [u32; 2],
    parts: impl Fn(&'a Vm) -> &'a [P],
    index: impl Fn(&P) -> u32,
) -> Option<(&'a Vm, &'a P)> {
    vms_from(inventory, vm).find_map(|row| {
        let from = if row.index.0 == vm { part } else { 0 };
        let parts = parts(row);
        Some((row, parts.get(parts.partition_point(|part| index(part) < from))?))
    })
}

fn vms_from(inventory: &Inventory, index: u32) -> impl Iterator<Item = &Vm> {
    inventory.vms.iter_from(index)
}

/// The vCPUs of a VM from this vmCpuIndex on.
fn vcpus_from(vm: &Vm, index: u32) -> &[Vcpu] {
    // KVM_MAX_VCPU_IDS is far below, but a process names its threads as it likes: what has no
    // VirtualMachineCpuIndex has no row.
    let end = vm.vcpus.partition_point(|vcpu| vcpu.id < i32::MAX.unsigned_abs());
    let vcpus = &vm.vcpus[..end];
    &vcpus[vcpus.partition_point(|vcpu| cpu_index(vcpu) < index)..]
}

/// vmCpuIndex.
fn cpu_index(vcpu: &Vcpu) -> u32 {
    vcpu.id.saturating_add(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_before_its_instances_and_a_longer_name_after() {
        assert_eq!(lower_bound::<2>(&[], false), Some([0, 0]));
        assert_eq!(lower_bound::<2>(&[7], false), Some([7, 0]));
        assert_eq!(lower_bound::<2>(&[7, 3], true), Some([7, 3]));
        assert_eq!(lower_bound::<2>(&[7, 3], false), Some([7, 4]));
        assert_eq!(lower_bound::<2>(&[7, 3, 0], true), Some([7, 4]));
    }

    #[test]
    fn the_successor_carries_and_ends() {
        assert_eq!(successor([7, u32::MAX]), Some([8, 0]));
        assert_eq!(successor([7, i32::MAX.unsigned_abs()]), Some([7, 1 << 31]));
        assert_eq!(successor([u32::MAX; 3]), None);
        assert_eq!(lower_bound::<2>(&[u32::MAX, u32::MAX], false), None);
        assert_eq!(lower_bound::<2>(&[u32::MAX, u32::MAX], true), Some([u32::MAX; 2]));
        assert_eq!(lower_bound::<1>(&[u32::MAX, 0], true), None);
    }
}

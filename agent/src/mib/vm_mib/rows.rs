//! The rows of each table, found by binary search in the inventory. No other file of the module knows how the
//! inventory keeps its VMs.

use super::super::{
    context::Snapshot,
    smi::{Index as _, Rows},
};
use crate::inventory::{Disk, Inventory, Nic, Vcpu, Vm};

/// The rows of vmTable.
#[derive(Debug)]
pub struct Vms;

impl Rows<Snapshot> for Vms {
    type Index = [u32; 1];
    type Row<'a> = &'a Vm;

    fn at_or_after(snapshot: &Snapshot, [vm]: [u32; 1]) -> Option<&Vm> {
        snapshot.inventory().vms.first_from(vm)
    }

    fn index(vm: &Vm) -> [u32; 1] {
        [vm.index.0]
    }
}

/// The rows of vmCpuTable.
#[derive(Debug)]
pub struct Vcpus;

/// A row of vmCpuTable.
#[derive(Clone, Copy, Debug)]
pub struct VcpuRow<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// One of its vCPUs.
    pub vcpu: &'a Vcpu,
}

impl Rows<Snapshot> for Vcpus {
    type Index = [u32; 2];
    type Row<'a> = VcpuRow<'a>;

    fn at_or_after(snapshot: &Snapshot, [vm, vcpu]: [u32; 2]) -> Option<VcpuRow<'_>> {
        snapshot.inventory().vms.find_map_from(vm, |row| {
            let vcpu = vcpus_from(row, if row.index.0 == vm { vcpu } else { 0 }).first()?;
            Some(VcpuRow { vm: row, vcpu })
        })
    }

    fn index(row: VcpuRow<'_>) -> [u32; 2] {
        [row.vm.index.0, cpu_index(row.vcpu)]
    }
}

/// The rows of vmCpuAffinityTable: all vCPUs times all CPUs of the host.
#[derive(Debug)]
pub struct Affinities;

/// A row of vmCpuAffinityTable.
#[derive(Clone, Copy, Debug)]
pub struct AffinityRow<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// One of its vCPUs.
    pub vcpu: &'a Vcpu,
    /// Number of the host's CPU.
    pub cpu: u32,
}

impl Rows<Snapshot> for Affinities {
    type Index = [u32; 3];
    type Row<'a> = AffinityRow<'a>;

    fn at_or_after(snapshot: &Snapshot, [vm, vcpu, cpu]: [u32; 3]) -> Option<AffinityRow<'_>> {
        if !snapshot.has_affinity() {
            return None;
        }
        let cpus = &snapshot.inventory().cpus;
        let first_cpu = *cpus.first()?;
        let row = Vcpus::at_or_after(snapshot, [vm, vcpu])?;
        if Vcpus::index(row) != [vm, vcpu] {
            return Some(AffinityRow { vm: row.vm, vcpu: row.vcpu, cpu: first_cpu });
        }
        let number = cpu.saturating_sub(FIRST_PROCESSOR);
        let from = cpus.partition_point(|&cpu| cpu < number);
        match cpus.get(from) {
            Some(&cpu) => Some(AffinityRow { vm: row.vm, vcpu: row.vcpu, cpu }),
            None => {
                let row = Vcpus::at_or_after(snapshot, Vcpus::index(row).successor()?)?;
                Some(AffinityRow { vm: row.vm, vcpu: row.vcpu, cpu: first_cpu })
            }
        }
    }

    fn index(row: AffinityRow<'_>) -> [u32; 3] {
        // The inventory's CPU numbers end with the kernel's NR_CPUS, far below.
        [row.vm.index.0, cpu_index(row.vcpu), FIRST_PROCESSOR.saturating_add(row.cpu)]
    }
}

/// hrDeviceIndex of the first processor in net-snmp's HOST-RESOURCES-MIB; CPU number n has this plus n
/// (`HRDEV_PROC << HRDEV_TYPE_SHIFT`, agent/mibgroup/host/hr_device.h and hr_proc.c).
const FIRST_PROCESSOR: u32 = 3 << 16;

/// The rows of vmStorageTable.
#[derive(Debug)]
pub struct Disks;

/// A row of vmStorageTable.
#[derive(Clone, Copy, Debug)]
pub struct DiskRow<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// One of its disks.
    pub disk: &'a Disk,
}

impl Rows<Snapshot> for Disks {
    type Index = [u32; 2];
    type Row<'a> = DiskRow<'a>;

    fn at_or_after(snapshot: &Snapshot, at: [u32; 2]) -> Option<DiskRow<'_>> {
        let (vm, disk) = part_from(snapshot.inventory(), at, |vm| &vm.disks, |disk| disk.index)?;
        Some(DiskRow { vm, disk })
    }

    fn index(row: DiskRow<'_>) -> [u32; 2] {
        [row.vm.index.0, row.disk.index]
    }
}

/// The rows of vmNetworkTable.
#[derive(Debug)]
pub struct Nics;

/// A row of vmNetworkTable.
#[derive(Clone, Copy, Debug)]
pub struct NicRow<'a> {
    /// The VM.
    pub vm: &'a Vm,
    /// One of its network interfaces.
    pub nic: &'a Nic,
}

impl Rows<Snapshot> for Nics {
    type Index = [u32; 2];
    type Row<'a> = NicRow<'a>;

    fn at_or_after(snapshot: &Snapshot, at: [u32; 2]) -> Option<NicRow<'_>> {
        let (vm, nic) = part_from(snapshot.inventory(), at, |vm| &vm.nics, |nic| nic.index)?;
        Some(NicRow { vm, nic })
    }

    fn index(row: NicRow<'_>) -> [u32; 2] {
        [row.vm.index.0, row.nic.index]
    }
}

/// The first part of a VM whose index and that of its VM are these or after them.
fn part_from<'a, P>(
    inventory: &'a Inventory,
    [vm, part]: [u32; 2],
    parts: impl Fn(&'a Vm) -> &'a [P],
    index: impl Fn(&P) -> u32,
) -> Option<(&'a Vm, &'a P)> {
    inventory.vms.find_map_from(vm, |row| {
        let from = if row.index.0 == vm { part } else { 0 };
        let parts = parts(row);
        Some((row, parts.get(parts.partition_point(|part| index(part) < from))?))
    })
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

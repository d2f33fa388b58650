//! What the instances are, found the slow and plain way.

use kvmeter::{
    counters::{DiskIo, Readings as _},
    inventory::{CountedBy, Disk, IfIndex, Inventory, OperState, StorageSource, Vm},
    mib::VM_MIB,
    snmp::{Oid, OwnedValue},
};

use super::host::FixedReadings;

pub(crate) fn name(suffix: &[u32]) -> Oid {
    suffix.iter().fold(VM_MIB, |mut name, &part| {
        name.push(part).expect("short");
        name
    })
}

/// As a column has it: 0 = there is none.
pub(crate) fn if_index(of: IfIndex) -> u32 {
    match of {
        IfIndex::Is(if_index) => if_index,
        IfIndex::Absent(_) => 0,
    }
}

/// Every instance, listed row by row and sorted: the slow and plain way.
pub(crate) fn oracle(inventory: &Inventory, readings: &FixedReadings) -> Vec<(Oid, OwnedValue)> {
    let mut all = Vec::new();
    let mut put = |suffix: &[u32], value: OwnedValue| all.push((name(suffix), value));
    let hypervisor = &inventory.hypervisor;
    let no_id = hypervisor.object_id.is_empty();
    let id = if no_id { Oid::of(&[0, 0]) } else { hypervisor.object_id };
    put(&[1, 1, 1, 0], text(&hypervisor.software));
    put(&[1, 1, 2, 0], text(&hypervisor.version));
    put(&[1, 1, 3, 0], OwnedValue::ObjectIdentifier(id));
    put(&[1, 1, 4, 0], ticks(readings.since_boot_ns));
    put(&[1, 2, 0], OwnedValue::Integer(i32::try_from(inventory.vms.len()).unwrap()));
    put(&[1, 3, 0], ticks(inventory.last_change_ns));
    put(&[1, 9, 0], OwnedValue::Integer(2));
    put(&[1, 10, 0], OwnedValue::Integer(2));
    for vm in inventory.vms.iter() {
        let i = vm.index.0;
        for (column, value) in vm_columns(vm, readings) {
            put(&[1, 4, 1, column, i], value);
        }
        for vcpu in vm.vcpus.iter().filter(|vcpu| vcpu.id < 0x7fff_ffff) {
            let time = match vcpu.slot {
                Some(slot) => readings.vcpu_time_ns(slot),
                None => is_down(vm).then_some(0),
            };
            if let Some(ns) = time {
                put(&[1, 5, 1, 2, i, vcpu.id + 1], OwnedValue::Counter64(ns / 1000));
            }
            for &cpu in inventory.cpus.iter() {
                let mask = vcpu.slot.and_then(|slot| readings.cpu_mask(slot));
                let affinity = match mask.and_then(|mask| mask.has(cpu)) {
                    None => 0,
                    Some(true) => 1,
                    Some(false) => 2,
                };
                put(&[1, 6, 1, 3, i, vcpu.id + 1, 196_608 + cpu], OwnedValue::Integer(affinity));
            }
        }
        for disk in &vm.disks {
            for (column, value) in disk_columns(vm, disk, readings) {
                put(&[1, 7, 1, column, i, disk.index], value);
            }
        }
        for nic in &vm.nics {
            put(&[1, 8, 1, 2, i, nic.index], saturated(if_index(nic.if_index)));
            put(&[1, 8, 1, 3, i, nic.index], saturated(if_index(nic.parent)));
            put(&[1, 8, 1, 4, i, nic.index], text(&nic.model));
            put(&[1, 8, 1, 5, i, nic.index], OwnedValue::OctetString(nic.phys_address.clone()));
        }
    }
    all.sort_by_key(|(name, _)| *name);
    all
}

fn vm_columns(vm: &Vm, readings: &FixedReadings) -> Vec<(u32, OwnedValue)> {
    let largest = [vm.memory.current, vm.memory.min, vm.memory.max].into_iter().flatten().max();
    let unit = match largest.unwrap_or(0) {
        0..0x200_0000_0000 => 1024,
        0x200_0000_0000..0x8_0000_0000_0000 => 1024 * 1024,
        _ => 1024 * 1024 * 1024,
    };
    let memory =
        |octets: u64| OwnedValue::Integer(i32::try_from(octets / unit).unwrap_or(i32::MAX));
    let no_limit = || OwnedValue::Integer(-1);
    let up = match vm.started_ns {
        Some(started) => Some(readings.since_boot_ns.saturating_sub(started)),
        None => (is_down(vm) && vm.oper_state != OperState::Suspended).then_some(0),
    };
    let cpu_time = match vm.slot {
        Some(slot) => readings.vm_time_ns(slot),
        None => is_down(vm).then_some(0),
    };
    let columns = [
        (2, Some(text(&vm.name))),
        (
            3,
            Some(OwnedValue::OctetString(
                vm.uuid.map_or_else(Vec::new, |uuid| uuid.as_bytes().to_vec()),
            )),
        ),
        (4, Some(text(&vm.os_type))),
        (5, Some(OwnedValue::Integer(vm.admin_state as i32))),
        (6, Some(OwnedValue::Integer(vm.oper_state as i32))),
        (7, Some(OwnedValue::Integer(vm.auto_start as i32))),
        (8, Some(OwnedValue::Integer(vm.persistence as i32))),
        (9, Some(saturated(vm.cpu_number))),
        (10, Some(vm.min_cpu_number.map_or_else(no_limit, saturated))),
        (11, Some(vm.max_cpu_number.map_or_else(no_limit, saturated))),
        (12, Some(OwnedValue::Integer(i32::try_from(unit).unwrap()))),
        (13, vm.memory.current.map(memory)),
        (14, Some(vm.memory.min.map_or_else(no_limit, memory))),
        (15, Some(vm.memory.max.map_or_else(no_limit, memory))),
        (16, up.map(ticks)),
        (17, cpu_time.map(|ns| OwnedValue::Counter64(ns / 1000))),
    ];
    columns.into_iter().filter_map(|(column, value)| Some((column, value?))).collect()
}

fn disk_columns(vm: &Vm, disk: &Disk, readings: &FixedReadings) -> Vec<(u32, OwnedValue)> {
    let defined = disk.size.defined;
    let is_plain = [StorageSource::Block, StorageSource::Raw].contains(&disk.source);
    let allocated = if is_plain { defined } else { disk.size.allocated };
    let largest = defined.max(allocated).unwrap_or(0);
    let unit = [1_u64 << 10, 1 << 20, 1 << 30];
    let unit = unit.into_iter().find(|unit| largest / unit < 1 << 31).unwrap_or(1 << 30);
    let size = |octets: Option<u64>| {
        let units = octets.map(|octets| i32::try_from(octets / unit).unwrap_or(i32::MAX));
        OwnedValue::Integer(units.unwrap_or(-1))
    };
    let io = match &disk.counted_by {
        CountedBy::Kernel(images, ..) => readings.disk_io(images),
        CountedBy::Pending => None,
        CountedBy::Uncounted(_) => is_down(vm).then(DiskIo::default),
    };
    let mut columns = vec![
        (3, OwnedValue::Integer(0)),
        (4, OwnedValue::Integer(disk.source as i32)),
        (5, text(&disk.format)),
        (6, text(&disk.resource)),
        (7, OwnedValue::Integer(disk.access as i32)),
        (8, OwnedValue::Integer(disk.media as i32)),
        (9, text(&disk.bus)),
        (10, OwnedValue::Integer(i32::try_from(unit).unwrap())),
        (11, size(defined)),
        (12, size(allocated)),
    ];
    if let Some(io) = io {
        let (read_time, write_time) = (io.read_ns / 1000, io.write_ns / 1000);
        let counts = [io.reads, io.writes, io.read_octets, io.write_octets, read_time, write_time];
        columns.extend((13..).zip(counts.map(OwnedValue::Counter64)));
    }
    columns
}

fn is_down(vm: &Vm) -> bool {
    use OperState::{Crashed, Shutdown, Suspended};
    let state = [Shutdown, Suspended, Crashed].contains(&vm.oper_state);
    state && vm.started_ns.is_none() && vm.slot.is_none()
}

fn text(text: &str) -> OwnedValue {
    let mut octets = Vec::new();
    for character in text.chars() {
        if octets.len() + character.len_utf8() > 255 {
            break;
        }
        octets.extend(character.to_string().into_bytes());
    }
    OwnedValue::OctetString(octets)
}

fn ticks(ns: u64) -> OwnedValue {
    OwnedValue::TimeTicks(u32::try_from(ns / 10_000_000 % (1 << 32)).unwrap())
}

fn saturated(number: u32) -> OwnedValue {
    OwnedValue::Integer(i32::try_from(number).unwrap_or(i32::MAX))
}

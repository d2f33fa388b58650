//! What the instances are, found the slow and plain way.

use kvmeter::{
    counters::Readings as _,
    inventory::{Inventory, OperState, Vm},
    mib::VM_MIB,
    snmp::{Oid, Value},
};

use super::host::FixedReadings;

/// A value that the oracle owns.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Owned {
    Integer(i32),
    Octets(Vec<u8>),
    Oid(Vec<u32>),
    Ticks(u32),
    Counter(u64),
}

impl From<Value<'_>> for Owned {
    fn from(value: Value<'_>) -> Self {
        match value {
            Value::Integer(number) => Self::Integer(number),
            Value::OctetString(octets) => Self::Octets(octets.to_vec()),
            Value::ObjectIdentifier(oid) => Self::Oid(oid.parts().to_vec()),
            Value::TimeTicks(ticks) => Self::Ticks(ticks),
            Value::Counter64(count) => Self::Counter(count),
        }
    }
}

pub(crate) fn name(suffix: &[u32]) -> Oid {
    suffix.iter().fold(VM_MIB, |mut name, &part| {
        name.push(part).expect("short");
        name
    })
}

/// Every instance, listed row by row and sorted: the slow and plain way.
pub(crate) fn oracle(inventory: &Inventory, readings: &FixedReadings) -> Vec<(Oid, Owned)> {
    let mut all = Vec::new();
    let mut put = |suffix: &[u32], value: Owned| all.push((name(suffix), value));
    let hypervisor = &inventory.hypervisor;
    let no_id = hypervisor.object_id.is_empty();
    let id = if no_id { Oid::of(&[0, 0]) } else { hypervisor.object_id };
    put(&[1, 1, 1, 0], text(&hypervisor.software));
    put(&[1, 1, 2, 0], text(&hypervisor.version));
    put(&[1, 1, 3, 0], Owned::Oid(id.parts().to_vec()));
    put(&[1, 1, 4, 0], ticks(readings.since_boot_ns));
    put(&[1, 2, 0], Owned::Integer(i32::try_from(inventory.vms.len()).unwrap()));
    put(&[1, 3, 0], ticks(inventory.last_change_ns));
    put(&[1, 9, 0], Owned::Integer(2));
    put(&[1, 10, 0], Owned::Integer(2));
    for vm in &inventory.vms {
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
                put(&[1, 5, 1, 2, i, vcpu.id + 1], Owned::Counter(ns / 1000));
            }
            for &cpu in &inventory.cpus {
                let affinity = match vcpu.slot.and_then(|slot| readings.may_run_on(slot, cpu)) {
                    None => 0,
                    Some(true) => 1,
                    Some(false) => 2,
                };
                put(&[1, 6, 1, 3, i, vcpu.id + 1, 196_608 + cpu], Owned::Integer(affinity));
            }
        }
        for nic in &vm.nics {
            put(&[1, 8, 1, 2, i, nic.index], saturated(nic.if_index));
            put(&[1, 8, 1, 3, i, nic.index], saturated(nic.parent_if_index));
            put(&[1, 8, 1, 4, i, nic.index], text(&nic.model));
            put(&[1, 8, 1, 5, i, nic.index], Owned::Octets(nic.phys_address.clone()));
        }
    }
    all.sort_by_key(|(name, _)| *name);
    all
}

fn vm_columns(vm: &Vm, readings: &FixedReadings) -> Vec<(u32, Owned)> {
    let largest = [vm.memory.current, vm.memory.min, vm.memory.max].into_iter().flatten().max();
    let unit = match largest.unwrap_or(0) {
        0..0x200_0000_0000 => 1024,
        0x200_0000_0000..0x8_0000_0000_0000 => 1024 * 1024,
        _ => 1024 * 1024 * 1024,
    };
    let memory = |octets: u64| Owned::Integer(i32::try_from(octets / unit).unwrap_or(i32::MAX));
    let no_limit = || Owned::Integer(-1);
    let up = match vm.started_ns {
        Some(started) => Some(readings.since_boot_ns.saturating_sub(started)),
        None => is_down(vm).then_some(0),
    };
    let cpu_time = match vm.slot {
        Some(slot) => readings.vm_time_ns(slot),
        None => is_down(vm).then_some(0),
    };
    let columns = [
        (2, Some(text(&vm.name))),
        (3, Some(Owned::Octets(vm.uuid.map_or_else(Vec::new, |uuid| uuid.as_bytes().to_vec())))),
        (4, Some(text(&vm.os_type))),
        (5, Some(Owned::Integer(vm.admin_state as i32))),
        (6, Some(Owned::Integer(vm.oper_state as i32))),
        (7, Some(Owned::Integer(vm.auto_start as i32))),
        (8, Some(Owned::Integer(vm.persistence as i32))),
        (9, Some(saturated(vm.cpu_number))),
        (10, Some(vm.min_cpu_number.map_or_else(no_limit, saturated))),
        (11, Some(vm.max_cpu_number.map_or_else(no_limit, saturated))),
        (12, Some(Owned::Integer(i32::try_from(unit).unwrap()))),
        (13, vm.memory.current.map(memory)),
        (14, Some(vm.memory.min.map_or_else(no_limit, memory))),
        (15, Some(vm.memory.max.map_or_else(no_limit, memory))),
        (16, up.map(ticks)),
        (17, cpu_time.map(|ns| Owned::Counter(ns / 1000))),
    ];
    columns.into_iter().filter_map(|(column, value)| Some((column, value?))).collect()
}

fn is_down(vm: &Vm) -> bool {
    use OperState::{Crashed, Shutdown, Suspended};
    let state = [Shutdown, Suspended, Crashed].contains(&vm.oper_state);
    state && vm.started_ns.is_none() && vm.slot.is_none()
}

fn text(text: &str) -> Owned {
    let mut octets = Vec::new();
    for character in text.chars() {
        if octets.len() + character.len_utf8() > 255 {
            break;
        }
        octets.extend(character.to_string().into_bytes());
    }
    Owned::Octets(octets)
}

fn ticks(ns: u64) -> Owned {
    Owned::Ticks(u32::try_from(ns / 10_000_000 % (1 << 32)).unwrap())
}

fn saturated(number: u32) -> Owned {
    Owned::Integer(i32::try_from(number).unwrap_or(i32::MAX))
}

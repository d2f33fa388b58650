//! What an answer of the MIB takes on a large host: 1,000 VMs of 16 vCPUs, 256 CPUs. The counters are made
//! up, so that the time is the MIB's own.

use std::sync::Arc;

use anyhow::Context as _;
use kvmeter::{
    agentx::{Lookup, Objects as _},
    counters::{CpuMask, DiskIo, ImageSlot, Readings, Requests, ThreadReading, ThreadSlot, VmSlot},
    inventory::{
        AdminState, AutoStart, Inventory, Memory, OperState, Persistence, Vcpu, Vm, VmIndex, VmUuid,
    },
    mib::{self, Snapshot, VM_MIB, smi::Instances},
    snmp::Oid,
};

use crate::measure::{Subject, compare, print};

const VMS: u32 = 1000;
const VCPUS: u32 = 16;
const CPUS: u32 = 256;

/// vmTable, vmCpuTable and vmCpuAffinityTable below VM-MIB.
const TABLES: [(&str, [u32; 2]); 3] =
    [("vmTable", [1, 4]), ("vmCpuTable", [1, 5]), ("vmCpuAffinityTable", [1, 6])];

/// How many names of a table are asked for in turn.
const NAMES: usize = 4096;
/// Names are taken this far apart: a prime, so that they fall on all columns and rows.
const STEP: usize = 7;
/// Variables that one GetBulk asks for.
const BULK: u32 = 64;

/// Measures and prints.
pub(crate) fn run(rounds: u32) -> anyhow::Result<()> {
    let tree = mib::tree()?;
    let inventory = Arc::new(host()?);
    let snapshot = Snapshot::of_counters(inventory, Arc::new(MadeUp));
    let instances = &tree.instances(snapshot);
    let mut subjects = Vec::new();
    for (table, suffix) in TABLES {
        let mut below = VM_MIB;
        for part in suffix {
            below.push(part)?;
        }
        let names: Vec<Oid> = Walk { instances, at: below }.step_by(STEP).take(NAMES).collect();
        for name in &names {
            let found = matches!(instances.get(name), Lookup::Found(_));
            anyhow::ensure!(found, "{name} is not there");
        }
        let (mut get, mut next) = (Cycle::new(names.clone())?, Cycle::new(names.clone())?);
        let mut bulk = Cycle::new(names)?;
        subjects.push(Subject::new(format!("get, {table}"), move || {
            matches!(instances.get(get.next()), Lookup::Found(_))
        }));
        subjects.push(Subject::new(format!("get-next, {table}"), move || {
            instances.get_next(next.next(), false, &Oid::empty()).is_some()
        }));
        let walk = move || (0..BULK).zip(Walk { instances, at: *bulk.next() }).count();
        subjects
            .push(Subject::new(format!("each of {BULK} in a row, {table}"), walk).of_parts(BULK));
    }
    compare(&mut subjects, rounds);
    print("an answer", &subjects);
    Ok(())
}

/// The names after one another.
struct Walk<'a> {
    instances: &'a Instances<'a, Snapshot>,
    at: Oid,
}

impl Iterator for Walk<'_> {
    type Item = Oid;

    fn next(&mut self) -> Option<Oid> {
        let (name, _) = self.instances.get_next(&self.at, false, &Oid::empty())?;
        self.at = name;
        Some(name)
    }
}

/// Names, over and over.
struct Cycle {
    names: Vec<Oid>,
    at: usize,
}

impl Cycle {
    fn new(names: Vec<Oid>) -> anyhow::Result<Self> {
        anyhow::ensure!(!names.is_empty(), "The table is empty");
        Ok(Self { names, at: 0 })
    }

    fn next(&mut self) -> &Oid {
        self.at = (self.at + 1) % self.names.len();
        &self.names[self.at]
    }
}

fn host() -> anyhow::Result<Inventory> {
    let vm = |index: u32| {
        let vcpu = |id| {
            let slot = u16::try_from((index - 1) * VCPUS + id + 1).context("Too many vCPUs")?;
            Ok(Vcpu { id, slot: Some(ThreadSlot::without_thread(slot)) })
        };
        anyhow::Ok(Vm {
            index: VmIndex(index),
            name: format!("vm{index}"),
            uuid: Some(VmUuid::of_bytes([7; 16])),
            os_type: String::new(),
            admin_state: AdminState::Running,
            oper_state: OperState::Running,
            auto_start: AutoStart::Unknown,
            persistence: Persistence::Unknown,
            cpu_number: VCPUS,
            min_cpu_number: None,
            max_cpu_number: None,
            memory: Memory { current: Some(1 << 32), min: None, max: Some(1 << 33) },
            started_ns: Some(0),
            pid: None,
            slot: Some(VmSlot(u16::try_from(index)?)),
            vcpus: (0..VCPUS).map(vcpu).collect::<anyhow::Result<_>>()?,
            disks: Vec::new(),
            nics: Vec::new(),
            ..Vm::default()
        })
    };
    Ok(Inventory {
        vms: (1..=VMS).map(vm).collect::<anyhow::Result<_>>()?,
        cpus: (0..CPUS).collect(),
        ..Inventory::default()
    })
}

/// Counters that follow from their slots.
struct MadeUp;

impl Readings for MadeUp {
    fn vcpu_time_ns(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<u64> {
        Some(u64::from(slot) * 1_234_567_891)
    }

    fn vm_time_ns(&self, VmSlot(slot): VmSlot) -> Option<u64> {
        Some(u64::from(slot) * 12_345_678_912)
    }

    fn cpu_mask(&self, ThreadSlot { record: slot, .. }: ThreadSlot) -> Option<CpuMask> {
        Some(CpuMask::of_numbers((0..1024).filter(|cpu| (u32::from(slot) + cpu).is_multiple_of(3))))
    }

    fn thread(&self, _: ThreadSlot) -> Option<ThreadReading> {
        None
    }

    fn disk_io(&self, _: &[ImageSlot]) -> Option<DiskIo> {
        None
    }

    fn disk_requests(&self, _: &[ImageSlot]) -> Option<[Requests; 2]> {
        None
    }

    fn since_boot_ns(&self) -> u64 {
        1
    }
}

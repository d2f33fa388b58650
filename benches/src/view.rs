//! What answering a request costs, without the wire.

use kvmeter::{
    agentx::View as _,
    counters::{Readings, ThreadSlot, VmSlot},
    inventory::{
        AdminState, AutoStart, Inventory, Memory, OperState, Persistence, Vcpu, Vm, VmIndex,
    },
    mib::View,
    snmp::Oid,
};

use crate::rounds::{print, time};

const VMS: u32 = 1000;
const VCPUS: u32 = 16;
const CPUS: u32 = 256;
const CALLS: usize = 20_000;

/// Counters without a clock: what is measured is the way to them.
struct Still;

impl Readings for Still {
    fn vcpu_time_ns(&self, vcpu: ThreadSlot) -> Option<u64> {
        Some(u64::from(vcpu.0))
    }

    fn vm_time_ns(&self, vm: VmSlot) -> Option<u64> {
        Some(u64::from(vm.0))
    }

    fn may_run_on(&self, _: ThreadSlot, _: u32) -> Option<bool> {
        Some(true)
    }

    fn since_boot_ns(&self) -> u64 {
        1
    }
}

pub(crate) fn run() -> anyhow::Result<()> {
    println!("view: nanoseconds of one name, {VMS} VMs with {VCPUS} vCPUs on {CPUS} CPUs");
    let inventory = inventory()?;
    let view = View::new(&inventory, &Still);
    let name = |parts: &[u32]| Oid::of(&[&[1, 3, 6, 1, 2, 1, 236, 1], parts].concat());
    let core_time = name(&[5, 1, 2, 700, 9]);
    let vm_name = name(&[4, 1, 2, 700]);
    let (mut table, mut affinity) = (name(&[5]), name(&[6]));
    let follow = |at: &mut Oid, start: &[u32]| {
        match view.get_next(at, false, &Oid::empty()) {
            Some((next, _)) => *at = next,
            None => *at = name(start),
        }
        u64::try_from(at.len()).unwrap_or(0)
    };
    let [get, get_text, walk, walk_affinity] = time([
        (CALLS, &mut || {
            u64::from(matches!(view.get(&core_time), kvmeter::agentx::Lookup::Found(_)))
        }),
        (CALLS, &mut || u64::from(matches!(view.get(&vm_name), kvmeter::agentx::Lookup::Found(_)))),
        (CALLS, &mut || follow(&mut table, &[5])),
        (CALLS, &mut || follow(&mut affinity, &[6])),
    ]);
    print("get of vmCpuCoreTime", get, None);
    print("get of vmName", get_text, None);
    print("get-next along vmCpuTable", walk, None);
    print("get-next along vmCpuAffinityTable", walk_affinity, None);
    println!();
    Ok(())
}

fn inventory() -> anyhow::Result<Inventory> {
    let mut vms = Vec::new();
    for index in 1..=VMS {
        let vcpus = (0..VCPUS)
            .map(|id| {
                let slot = u16::try_from(index * VCPUS + id)?;
                Ok(Vcpu { id, slot: Some(ThreadSlot(slot)) })
            })
            .collect::<anyhow::Result<_>>()?;
        vms.push(Vm {
            index: VmIndex(index),
            name: format!("vm{index}"),
            uuid: None,
            os_type: String::new(),
            admin_state: AdminState::Running,
            oper_state: OperState::Running,
            auto_start: AutoStart::Unknown,
            persistence: Persistence::Transient,
            cpu_number: VCPUS,
            min_cpu_number: None,
            max_cpu_number: Some(VCPUS),
            memory: Memory { current: Some(1 << 30), min: None, max: Some(1 << 30) },
            started_ns: Some(0),
            pid: None,
            slot: Some(VmSlot(u16::try_from(index)?)),
            vcpus,
            disks: Vec::new(),
            nics: Vec::new(),
        });
    }
    Ok(Inventory { vms, cpus: (0..CPUS).collect(), ..Inventory::default() })
}

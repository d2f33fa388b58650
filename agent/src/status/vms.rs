//! The VMs of the report: what the values of this moment are called in the document.

use super::model::{Disk, DiskRequests, Nic, Vcpu, Vm};
use crate::{
    counters::Requests,
    inventory,
    values::{self, Moment, Number},
};

/// All VMs in the order of vmIndex.
#[must_use]
pub fn vms(moment: Moment<'_>) -> Vec<Vm> {
    moment.inventory.vms.iter().map(|of| vm(moment, of)).collect()
}

fn vm(moment: Moment<'_>, vm: &inventory::Vm) -> Vm {
    // Before the VM's own time, which must not be below their sum.
    let vcpus = vm.vcpus.iter().map(|of| vcpu(moment, vm, of)).collect();
    let cpu = values::vm_time_ns(moment, vm);
    Vm {
        index: vm.index.0,
        name: values::vm_name(vm).to_owned(),
        uuid: values::vm_uuid(vm).map(ToString::to_string),
        pid: values::vm_process(vm),
        state: values::vm_oper_state(vm).name().to_owned(),
        cpu_ns: cpu.value(),
        why: cpu.why_absent().map(str::to_owned),
        vcpus,
        disks: vm.disks.iter().map(|of| disk(moment, vm, of)).collect(),
        nics: vm.nics.iter().map(nic).collect(),
        gaps: values::vm_gaps(vm).to_vec(),
    }
}

fn vcpu(moment: Moment<'_>, vm: &inventory::Vm, vcpu: &inventory::Vcpu) -> Vcpu {
    let cpu = values::vcpu_time_ns(moment, vm, vcpu);
    Vcpu {
        id: vcpu.id,
        tid: values::vcpu_thread(moment, vcpu),
        cpu_ns: cpu.value(),
        wait_ns: values::vcpu_wait_ns(moment, vm, vcpu).value(),
        switches: values::vcpu_switches(moment, vm, vcpu).value(),
        preemptions: values::vcpu_preemptions(moment, vm, vcpu).value(),
        live: matches!(cpu, Number::Kernel(_)),
        why: cpu.why_absent().map(str::to_owned),
    }
}

fn disk(moment: Moment<'_>, vm: &inventory::Vm, disk: &inventory::Disk) -> Disk {
    let numbers = values::disk_io(moment, vm, disk);
    let counter = values::disk_counter(moment, disk, numbers);
    let more = values::disk_requests(moment, disk);
    let [more_read, more_write] =
        more.as_ref().map_or([None, None], |more| more.each_ref().map(Some));
    let io = numbers.value();
    Disk {
        index: disk.index,
        target: values::disk_target(disk).to_owned(),
        counted_by: counter.name.map(str::to_owned),
        why: Some(counter.why.to_owned()),
        age_ms: counter.age_ns.map(|age| age / 1_000_000),
        read: io.map(|io| requests(io.reads, io.read_octets, io.read_ns, more_read)),
        write: io.map(|io| requests(io.writes, io.write_octets, io.write_ns, more_write)),
    }
}

fn nic(nic: &inventory::Nic) -> Nic {
    Nic {
        index: nic.index,
        device: values::nic_device(nic).map(str::to_owned),
        if_index: values::nic_if_index(nic),
        parent_if_index: values::nic_parent_if_index(nic),
        why: values::nic_why_absent(nic).map(str::to_owned),
    }
}

fn requests(requests: u64, octets: u64, latency_ns: u64, more: Option<&Requests>) -> DiskRequests {
    let latencies = more.map(|more| &more.latencies).filter(|latencies| latencies.count() > 0);
    let quantile = |per_mille| latencies.map(|latencies| latencies.quantile(per_mille) / 1000);
    DiskRequests {
        requests,
        octets,
        errors: more.map(|more| more.errors),
        latency_ns,
        p50_us: quantile(500),
        p99_us: quantile(990),
        p999_us: quantile(999),
    }
}

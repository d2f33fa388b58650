//! What `kvmeter status` shows, put together from what the rooms know.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use uuid::Uuid;

use super::Counting;
use crate::{
    agentx::{Phase, Statistics},
    config::Config,
    counters::{NotCounted, Readings, Records},
    inventory::{self, Inventory, Registry, procfs},
    status::{
        Source,
        model::{
            Agentx, Hook, Latency, Probe, ProbeMode, Report, Requests, SessionState, SourceState,
            Vcpu, Vm,
        },
    },
};

/// Knows everything that a report says.
pub(super) struct Reporter {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) counting: Counting,
    pub(super) registry: Arc<Registry>,
    pub(super) procfs: Option<Arc<procfs::Statistics>>,
    pub(super) statistics: Arc<Statistics>,
}

impl Reporter {
    /// Where the counters are read.
    pub(super) fn readings(&self) -> Arc<dyn Readings> {
        match &self.counting.records {
            Some(records) => Arc::<Records>::clone(records),
            None => Arc::new(NotCounted),
        }
    }

    fn agentx(&self) -> Agentx {
        let statistics = &*self.statistics;
        let count = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed);
        Agentx {
            state: match statistics.phase() {
                Phase::Disconnected => SessionState::Connecting,
                Phase::Opening => SessionState::Opening,
                Phase::Established => SessionState::Open,
            },
            master: self.config.agentx.address.to_string(),
            connects: count(&statistics.connects),
            reconnects: count(&statistics.sessions).saturating_sub(1),
            last_error: statistics.last_error(),
            requests: Requests {
                get: count(&statistics.get),
                get_next: count(&statistics.get_next),
                get_bulk: count(&statistics.get_bulk),
                set: count(&statistics.set),
            },
            errors: count(&statistics.errors),
            latency: (statistics.latency.count() > 0).then(|| Latency {
                p50_us: microseconds(statistics.latency.quantile(500)),
                p99_us: microseconds(statistics.latency.quantile(990)),
                max_us: microseconds(statistics.latency.max()),
            }),
        }
    }

    fn probe(&self) -> Probe {
        let Counting { records, hooks, adopted } = &self.counting;
        Probe {
            mode: if records.is_some() { ProbeMode::Ebpf } else { ProbeMode::Degraded },
            hooks: hooks
                .iter()
                .map(|state| Hook {
                    name: state.hook.name.to_owned(),
                    live: state.failure.is_none(),
                    why: state.failure.clone(),
                })
                .collect(),
            adopted: *adopted,
            pin_dir: self.config.probe.pin_dir.display().to_string(),
            events_lost: records.as_ref().map_or(0, |records| records.events_lost()),
            unrecorded_threads: records.as_ref().map_or(0, |records| records.unrecorded()),
        }
    }

    fn sources(&self, inventory: &Inventory) -> Vec<SourceState> {
        let (state, rescans) = match &self.procfs {
            None => ("off", 0),
            Some(procfs) if procfs.ended.load(Relaxed) => ("ended", procfs.scans.load(Relaxed)),
            Some(procfs) => ("live", procfs.scans.load(Relaxed)),
        };
        vec![SourceState {
            name: "procfs".to_owned(),
            state: state.to_owned(),
            stale_since: None,
            vms: u64::try_from(inventory.vms.len()).unwrap_or(u64::MAX),
            rescans,
        }]
    }

    fn vm(&self, vm: &inventory::Vm) -> Vm {
        let records = self.counting.records.as_deref();
        Vm {
            index: vm.index.0,
            name: vm.name.clone(),
            uuid: vm.uuid.map(|uuid| Uuid::from_bytes(uuid).to_string()),
            pid: vm.pid,
            state: vm.oper_state.name().to_owned(),
            cpu_ns: vm.slot.and_then(|slot| records?.vm_time_ns(slot)),
            vcpus: vm.vcpus.iter().map(|vcpu| reading(*vcpu, records)).collect(),
            disks: Vec::new(),
        }
    }
}

impl Source for Reporter {
    fn report(&self) -> Report {
        let inventory = self.registry.view();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            agentx: self.agentx(),
            probe: self.probe(),
            sources: self.sources(&inventory),
            vms: inventory.vms.iter().map(|vm| self.vm(vm)).collect(),
        }
    }
}

fn reading(vcpu: inventory::Vcpu, records: Option<&Records>) -> Vcpu {
    let thread = vcpu.slot.and_then(|slot| records?.thread(slot));
    Vcpu {
        id: vcpu.id,
        tid: thread.map(|thread| thread.tid),
        cpu_ns: thread.and_then(|thread| thread.run_ns),
        wait_ns: thread.map(|thread| thread.wait_ns),
        switches: thread.map(|thread| thread.switches_in),
        preemptions: thread.map(|thread| thread.preemptions),
        live: thread.is_some_and(|thread| thread.run_ns.is_some()),
    }
}

/// Saturates.
fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

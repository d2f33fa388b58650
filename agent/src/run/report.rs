//! What `kvmeter status` shows, put together from what the rooms know.

#[cfg(feature = "libvirt")]
use std::time::UNIX_EPOCH;
use std::{
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::Counting;
#[cfg(feature = "libvirt")]
use crate::sources::libvirt;
use crate::{
    agentx::{Phase, Statistics},
    config::Config,
    counters::{self, NoCounters, Readings, Records},
    inventory::{self, Assembly, CountedBy, Registry},
    notify,
    sources::procfs,
    status::model::{
        Agentx, Disk, DiskRequests, Hook, Latency, Notifications, Probe, ProbeMode, Report,
        Requests, SessionState, SourceState, Vcpu, Vm,
    },
};

/// Knows everything that a report says.
pub(super) struct Reporter {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) counting: Counting,
    pub(super) registry: Arc<Registry>,
    pub(super) assembly: Arc<Assembly>,
    pub(super) procfs: Arc<procfs::Statistics>,
    #[cfg(feature = "libvirt")]
    pub(super) libvirt: Option<Arc<libvirt::Statistics>>,
    #[cfg(not(feature = "libvirt"))]
    pub(super) libvirt: Option<()>,
    pub(super) statistics: Arc<Statistics>,
    pub(super) notified: Arc<notify::Statistics>,
}

impl Reporter {
    /// Where the counters are read.
    pub(super) fn readings(&self) -> Arc<dyn Readings> {
        match &self.counting.records {
            Some(records) => Arc::<Records>::clone(records),
            None => Arc::new(NoCounters),
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
                other: count(&statistics.other),
            },
            errors: count(&statistics.errors),
            parse_errors: count(&statistics.parse_errors),
            latency: (statistics.latency.count() > 0).then(|| Latency {
                p50_us: microseconds(statistics.latency.quantile(500)),
                p99_us: microseconds(statistics.latency.quantile(990)),
                max_us: microseconds(statistics.latency.max()),
            }),
        }
    }

    fn notifications(&self) -> Notifications {
        let dropped = self.notified.dropped.load(Relaxed);
        Notifications {
            changes: self.notified.changes.load(Relaxed),
            sent: self.statistics.notified.load(Relaxed),
            dropped: dropped.saturating_add(self.statistics.unsent.load(Relaxed)),
            refused: self.statistics.master_errors.load(Relaxed),
        }
    }

    fn probe(&self) -> Probe {
        let Counting { records, image_hooks, hooks, adopted } = &self.counting;
        let of_images = image_hooks.as_ref().map_or_else(Vec::new, |hooks| {
            hooks.lock().unwrap_or_else(PoisonError::into_inner).states()
        });
        let is_detached = records.as_ref().is_some_and(|records| !records.are_counted());
        let detached = is_detached
            .then(|| "`kvmeter detach` has ended the counting; start the agent anew".to_owned());
        Probe {
            mode: if records.is_some() { ProbeMode::Ebpf } else { ProbeMode::Degraded },
            hooks: hooks
                .iter()
                .chain(&of_images)
                .map(|state| Hook {
                    name: state.hook.name.to_owned(),
                    method: state.method.map(|method| method.name().to_owned()),
                    live: state.failure.is_none() && !is_detached,
                    why: detached.clone().or_else(|| state.failure.clone()),
                })
                .collect(),
            adopted: *adopted,
            pin_dir: self.config.probe.pin_dir.display().to_string(),
            events_lost: records.as_ref().map_or(0, |records| records.events_lost()),
            uncounted_requests: records.as_ref().map_or(0, |records| records.uncounted_requests()),
            unrecorded_threads: records.as_ref().map_or(0, |records| records.unrecorded()),
        }
    }

    fn sources(&self) -> Vec<SourceState> {
        let (domains, others) = self.assembly.counts();
        let state = match (self.procfs.ended.load(Relaxed), self.config.inventory.procfs) {
            (true, _) => "ended",
            (false, true) => "live",
            (false, false) => "for libvirt's domains only",
        };
        let mut sources = vec![SourceState {
            name: "procfs".to_owned(),
            state: state.to_owned(),
            stale_since: None,
            vms: u64::try_from(others).unwrap_or(u64::MAX),
            rescans: self.procfs.scans.load(Relaxed),
        }];
        sources.push(self.libvirt(u64::try_from(domains).unwrap_or(u64::MAX)));
        sources
    }

    #[cfg(feature = "libvirt")]
    fn libvirt(&self, vms: u64) -> SourceState {
        let name = "libvirt".to_owned();
        let Some(libvirt) = &self.libvirt else {
            return SourceState {
                name,
                state: "off".to_owned(),
                stale_since: None,
                vms,
                rescans: 0,
            };
        };
        let health = libvirt.health();
        let since = health.stale_since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
        SourceState {
            name,
            state: health.state,
            stale_since: since.map(|since| since.as_secs()),
            vms,
            rescans: libvirt.scans.load(Relaxed),
        }
    }

    #[cfg(not(feature = "libvirt"))]
    fn libvirt(&self, vms: u64) -> SourceState {
        let state = match self.libvirt {
            Some(()) | None => "not in this build".to_owned(),
        };
        SourceState { name: "libvirt".to_owned(), state, stale_since: None, vms, rescans: 0 }
    }

    fn vm(&self, vm: &inventory::Vm) -> Vm {
        let records = self.counting.records.as_deref();
        Vm {
            index: vm.index.0,
            name: vm.name.clone(),
            uuid: vm.uuid.map(|uuid| uuid.to_string()),
            pid: vm.pid,
            state: vm.oper_state.name().to_owned(),
            cpu_ns: vm.slot.and_then(|slot| records?.vm_time_ns(slot)),
            vcpus: vm.vcpus.iter().map(|vcpu| reading(*vcpu, records)).collect(),
            disks: vm.disks.iter().map(|of| disk(of, records)).collect(),
        }
    }
}

impl Reporter {
    /// The report of this moment.
    pub(super) fn report(&self) -> Report {
        let inventory = self.registry.view();
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            agentx: self.agentx(),
            notifications: self.notifications(),
            probe: self.probe(),
            sources: self.sources(),
            vms: inventory.vms.iter().map(|vm| self.vm(vm)).collect(),
        }
    }
}

fn disk(disk: &inventory::Disk, records: Option<&Records>) -> Disk {
    let mut told = Disk {
        index: disk.index,
        target: disk.target.clone(),
        counted_by: None,
        why: None,
        read: None,
        write: None,
    };
    match &disk.counted_by {
        CountedBy::Kernel(images, method, why) => {
            told.counted_by = Some(method.name().to_owned());
            told.why = Some((*why).to_owned());
            if let Some(records) = records {
                let io = records.image_io(images);
                let [read, write] = records.image_requests(images);
                told.read = Some(requests(io.reads, io.read_octets, io.read_ns, &read));
                told.write = Some(requests(io.writes, io.write_octets, io.write_ns, &write));
            }
        }
        CountedBy::Soon => told.why = Some("the VM has not opened it yet".to_owned()),
        CountedBy::Nobody(why) => {
            told.counted_by = disk.totals.as_ref().map(|_| "hypervisor".to_owned());
            told.why = Some(why.clone());
        }
    }
    told
}

fn requests(
    requests: u64,
    octets: u64,
    latency_ns: u64,
    more: &counters::Requests,
) -> DiskRequests {
    let quantile = |per_mille| more.latencies.quantile(per_mille) / 1000;
    DiskRequests {
        requests,
        octets,
        errors: more.errors,
        latency_ns,
        p50_us: quantile(500),
        p99_us: quantile(990),
        p999_us: quantile(999),
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

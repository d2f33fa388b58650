//! What `kvmeter status` shows, put together from what the rooms know.

use std::{
    sync::{Arc, PoisonError, atomic::Ordering::Relaxed},
    time::{Duration, Instant, UNIX_EPOCH},
};

use kvmeter_common::BLOCK_LEN;

use super::Counting;
use crate::{
    agentx::{Phase, Statistics},
    check,
    config::Config,
    counters::{NoCounters, Readings, Records, SlowValues},
    counting::{Fill, Holder, Occupancy},
    inventory::Registry,
    notify,
    probe::{HookState, is_attached},
    sources::{self, Source, procfs::SharedTracker},
    status::{
        self,
        model::{
            Agentx, HangingRead, Hook, Latency, Notifications, Probe, ProbeMode, RecordTable,
            Refusal, Report, Requests, SessionState, SourceState, SpentShare,
        },
    },
    values::Moment,
};

/// Knows everything that a report says.
pub(super) struct Reporter {
    pub(super) config: Config,
    pub(super) started: Instant,
    pub(super) counting: Counting,
    pub(super) tracker: Option<SharedTracker>,
    pub(super) registry: Arc<Registry>,
    pub(super) slow: Arc<SlowValues>,
    pub(super) sources: Vec<Arc<dyn Source>>,
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
            left_out: self.notified.left_out.load(Relaxed),
            unanswered: self.statistics.unanswered.load(Relaxed),
            refused: self.statistics.master_errors.load(Relaxed),
        }
    }

    fn probe(&self) -> Probe {
        let Counting { records, image_hooks, hooks, adopted, self_test: _ } = &self.counting;
        let of_images = image_hooks.as_ref().map_or_else(Vec::new, |hooks| {
            hooks.lock().unwrap_or_else(PoisonError::into_inner).states()
        });
        let is_detached = records.as_ref().is_some_and(|records| !records.are_counted());
        let detached = is_detached
            .then(|| "`kvmeter detach` has ended the counting; start the agent anew".to_owned());
        let why = |state: &HookState| {
            let is_gone = || !is_attached(&self.config.probe.pin_dir, state.hook.name);
            let gone = || "its pin was removed, so it is detached; start the agent anew".to_owned();
            detached.clone().or_else(|| state.failure.clone()).or_else(|| is_gone().then(gone))
        };
        Probe {
            mode: if records.is_some() { ProbeMode::Ebpf } else { ProbeMode::Degraded },
            hooks: hooks
                .iter()
                .chain(&of_images)
                .map(|state| {
                    let why = why(state);
                    Hook {
                        name: state.hook.name.to_owned(),
                        method: state.method.map(|method| method.name().to_owned()),
                        live: why.is_none(),
                        why,
                    }
                })
                .collect(),
            adopted: *adopted,
            tables: self.tables(),
            pin_dir: self.config.probe.pin_dir.display().to_string(),
            events_lost: records.as_ref().map_or(0, |records| records.events_lost()),
            uncounted_requests: records.as_ref().map_or(0, |records| records.uncounted_requests()),
            unrecorded_threads: records.as_ref().map_or(0, |records| records.unrecorded()),
        }
    }

    /// How full the tables of records are.
    fn tables(&self) -> Vec<RecordTable> {
        let (Some(tracker), Some(records)) = (&self.tracker, &self.counting.records) else {
            return Vec::new();
        };
        let Occupancy { vms, blocks, refused, short } = tracker.occupancy();
        let in_use = records.sizes().usable();
        let configured = check::sizes(&self.config.limits).usable();
        let configured = |of: usize| (configured[of] != in_use[of]).then(|| number(configured[of]));
        let table = |name: &str, of: usize, fill: Fill, unit: usize| RecordTable {
            name: name.to_owned(),
            size: number(fill.size * unit),
            configured: configured(of),
            used: number(fill.used * unit),
            of_users: Some(number(fill.of_users * unit)),
            refused: Vec::new(),
        };
        let refusal = |(holder, (vms, why))| {
            let (user, of) = match holder {
                Holder::Trusted => (None, "root and libvirt".to_owned()),
                Holder::Account(account) => (account.user(), account.to_string()),
            };
            Refusal { user, of, vms: number(vms), why }
        };
        let mut of_vms = table("VM records", 0, vms, 1);
        of_vms.refused = refused.into_iter().map(refusal).collect();
        let mut of_threads = table("thread records", 1, blocks, BLOCK_LEN);
        let no_block = "no block of thread records is free for them, or left of the user's share";
        of_threads.refused = short
            .into_iter()
            .map(|(holder, vms)| refusal((holder, (vms, no_block.to_owned()))))
            .collect();
        let (images, refused) = records.image_occupancy();
        let mut of_images = table("image records", 2, images, 1);
        // Also those that the programs have claimed just now.
        of_images.used = number(records.image_records().len());
        of_images.refused = refused.into_iter().map(refusal).collect();
        vec![of_vms, of_threads, of_images]
    }

    fn sources(&self) -> Vec<SourceState> {
        let view = self.registry.view();
        let vms_of = |id| {
            let count = view.vms.iter().filter(|vm| vm.source == id).count();
            u64::try_from(count).unwrap_or(u64::MAX)
        };
        let state = |source: &Arc<dyn Source>| {
            let health = source.health();
            let since = health.stale_since.and_then(|since| since.duration_since(UNIX_EPOCH).ok());
            let connection = source.connection();
            SourceState {
                name: source.name().to_owned(),
                uri: connection.map(|(_, uri)| uri.to_owned()),
                state: health.state,
                stale_since: since.map(|since| since.as_secs()),
                vms: vms_of(connection.map(|(id, _)| id)),
                rescans: source.scans(),
                hanging: health.hanging.into_iter().map(hanging_read).collect(),
                spent: health.spent.into_iter().map(spent_share).collect(),
                left_out: health.left_out,
            }
        };
        // A source may take half a second to say how it is: all are asked at the same time.
        let mut states: Vec<SourceState> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                self.sources.iter().map(|source| scope.spawn(move || state(source))).collect();
            asked.into_iter().filter_map(|asked| asked.join().ok()).collect()
        });
        if states.iter().all(|state| state.name != "libvirt") {
            let state = if cfg!(feature = "libvirt") { "off" } else { "not in this build" };
            states.push(SourceState {
                name: "libvirt".to_owned(),
                uri: None,
                state: state.to_owned(),
                stale_since: None,
                vms: 0,
                rescans: 0,
                hanging: Vec::new(),
                spent: Vec::new(),
                left_out: 0,
            });
        }
        states
    }
}

impl Reporter {
    /// The report of this moment.
    pub(super) fn report(&self) -> Report {
        // Before the view: a source may take half a second to answer.
        let sources = self.sources();
        let inventory = self.registry.view();
        let readings = self.readings();
        let moment = Moment { inventory: &inventory, readings: &*readings, slow: &self.slow };
        Report {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            agentx: self.agentx(),
            notifications: self.notifications(),
            probe: self.probe(),
            sources,
            blind_spots: check::blind_spots(),
            vms: status::vms(moment),
        }
    }
}

fn hanging_read(read: sources::HangingRead) -> HangingRead {
    let sources::HangingRead { pid, program, since, function } = read;
    let for_s = since.elapsed().map_or(0, |time| time.as_secs());
    HangingRead { pid, program, for_s, function }
}

fn spent_share(spent: sources::Spent) -> SpentShare {
    let sources::Spent { account, waiting, deferred } = spent;
    let (user, of) = (account.user(), account.to_string());
    SpentShare { user, of, waiting: number(waiting), deferred }
}

/// Saturates.
fn number(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// Saturates.
fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

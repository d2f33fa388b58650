//! `kvmeter run`: puts the rooms together, in the order in which privileges are needed, and serves until it is
//! told to end.

mod index_file;
pub mod inventory_thread;
mod report;
mod watchdog;

use std::{
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thiserror::Error;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{info, warn};

#[cfg(feature = "libvirt")]
use crate::sources::libvirt;
use crate::{
    agentx::{self, Statistics, TransportConfig},
    check,
    config::{self, Config},
    counters::Records,
    counting::{self, Registration, SelfTest, SharedHooks},
    inventory::{CoreConfig, Hypervisor},
    mib::{
        self, NotificationSwitches, Snapshot,
        smi::{Tree, TreeError},
    },
    notify,
    privileges::{self, PrivilegeError},
    probe::{Events, HookState, Method, Probe, ProbeError, SCHED_HOOKS, Sizes, with_causes},
    sources::{
        Source, host,
        procfs::{ProbeHandles, Procfs, ProcfsError},
    },
    status::{Server, server::ServerError},
};
use inventory_thread::{Outlets, Setup};
use report::Reporter;

/// How long the first view may take before the agent serves without waiting for it.
const FIRST_VIEW: Duration = Duration::from_secs(10);

/// How long the end may take that answers the status at the moment.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// Why the agent cannot run. A lack of probes is no such reason: the VMs are served without counters then.
#[derive(Debug, Error)]
pub enum RunError {
    /// There is another agent, or no place for the status socket.
    #[error(transparent)]
    Status(#[from] ServerError),
    /// It would run with more power than it should.
    #[error(transparent)]
    Privileges(#[from] PrivilegeError),
    /// VMs cannot be found.
    #[error(transparent)]
    Procfs(#[from] ProcfsError),
    /// Another agent has the pins.
    #[error(transparent)]
    InUse(ProbeError),
    /// A thread of the agent.
    #[error("Cannot start a thread")]
    Thread(#[source] io::Error),
    /// A thread that the agent cannot do without cannot go on.
    #[error("{0}; the agent ends, so that the service manager starts it again")]
    Failed(String),
    /// The modules cannot be served together.
    #[error(transparent)]
    Modules(#[from] TreeError),
    /// The runtime of the agent.
    #[error("Cannot start the runtime that serves the master")]
    Runtime(#[source] io::Error),
}

/// What the probes gave, or why there are none.
struct Counting {
    records: Option<Arc<Records>>,
    image_hooks: Option<SharedHooks>,
    /// Until the thread that counts disks has it.
    self_test: Option<SelfTest>,
    hooks: Vec<HookState>,
    adopted: bool,
}

/// Serves the VMs of this host until SIGTERM, SIGINT or SIGHUP.
///
/// # Errors
///
/// [`RunError`], all but [`RunError::Failed`] before the first request is served.
pub fn run(config: &Config) -> Result<(), RunError> {
    let started = Instant::now();
    // First of all, for it tells whether another agent has these directories.
    let status = Server::bind(&config.state.runtime_dir)?;
    raise_descriptor_limit();
    for spot in check::blind_spots() {
        warn!("Not all of the host is seen: {spot}");
    }
    let (mut counting, events) = begin_to_count(&config.probe, check::sizes(&config.limits))?;
    privileges::drop_to(&privileges::kept().collect::<Vec<_>>())?;

    let tree = mib::tree()?;
    let core = CoreConfig {
        shows_processes: config.inventory.procfs,
        counts: counting.records.is_some(),
        connections: connections(config),
        hypervisor: hypervisor(config),
    };
    let setup = Setup::new(core, &config.state.dir);
    let (registry, slow) = (Arc::clone(&setup.registry), Arc::clone(&setup.slow));
    if let Err(error) = host::start(setup.facts.clone()) {
        warn!("The interfaces of the host are not followed: {error}");
    }
    let probes = match (&counting.records, events) {
        (Some(records), Some(events)) => Some(ProbeHandles {
            events,
            records: Arc::clone(records),
            tracker: Arc::new(Registration::adopt(Arc::clone(records))),
        }),
        _ => None,
    };
    let tracker = probes.as_ref().map(|probes| Arc::clone(&probes.tracker));
    // Also where only libvirt's domains are served: their processes are what is counted.
    let procfs = Procfs::start(setup.facts.clone(), probes, config.inventory.procfs)?;
    let mut sources: Vec<Arc<dyn Source>> = vec![procfs.handle()];
    sources.extend(start_libvirt(config, &setup));
    let disks = match (&counting.records, &counting.image_hooks, counting.self_test.take()) {
        (Some(records), Some(hooks), Some(self_test)) => {
            let (records, hooks) = (Arc::clone(records), Arc::clone(hooks));
            let started = counting::Counting::start(records, hooks, self_test, setup.facts.clone());
            Some(started.map_err(RunError::Thread)?)
        }
        _ => None,
    };
    let (sink, notifier, notices, notified) = notify::pipeline(config.notifications.bulk_window);
    let outlets = Outlets {
        sources: sources.clone(),
        counting: disks.as_ref().and_then(counting::Counting::commands),
        on_change: Box::new(move |change| sink.note(change)),
    };
    let (mut inventory, mut failures) = setup.start(outlets).map_err(RunError::Thread)?;
    // A manager that asks at once is to find the VMs that run.
    if !inventory.flush(FIRST_VIEW) {
        warn!("The first view of the VMs takes long; serving what is known");
    }
    let mut heartbeats = vec![Arc::clone(&inventory.heartbeat)];
    heartbeats.extend(sources.iter().filter_map(|source| source.heartbeat()));
    heartbeats.extend(disks.iter().map(|disks| Arc::clone(&disks.heartbeat)));

    let statistics = Arc::new(Statistics::default());
    let reporter = Arc::new(Reporter {
        config: config.clone(),
        started,
        counting,
        tracker,
        registry: Arc::clone(&registry),
        slow: Arc::clone(&slow),
        sources,
        statistics: Arc::clone(&statistics),
        notified,
    });
    let readings = reporter.readings();
    let records = reporter.counting.records.clone();
    let switches =
        Arc::new(NotificationSwitches::new(config.notifications.per_vm, config.notifications.bulk));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(RunError::Runtime)?;
    let served = runtime.block_on(async {
        // Only from here on are the signals caught; before, they end the process at once.
        let signals = Signals::new().map_err(RunError::Runtime)?;
        tokio::spawn(async move {
            if let Err(error) = status.serve(move || reporter.report()).await {
                warn!("`kvmeter status` finds nobody: {error}");
            }
        });
        let of_notifier = Arc::clone(&switches);
        tokio::spawn(async move { notifier.run(&of_notifier).await });
        info!(vms = registry.view().vms.len(), master = %config.agentx.address, "serving");
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
            warn!("Cannot tell the service manager that kvmeter is ready: {error}");
        }
        tokio::spawn(watchdog::run(heartbeats));
        let mut failure = None;
        let ends = async {
            tokio::select! {
                () = signals.end() => {}
                Some(why) = failures.recv() => failure = Some(why),
            }
        };
        agentx::run(
            transport(config, &tree),
            || {
                let (readings, slow) = (Arc::clone(&readings), Arc::clone(&slow));
                let switches = Arc::clone(&switches);
                let snapshot = Snapshot::new(registry.view(), readings, slow, switches);
                tree.instances(snapshot.with_affinity(config.mib.affinity))
            },
            notices,
            &statistics,
            ends,
        )
        .await;
        failure.map_or(Ok(()), |why| Err(RunError::Failed(why)))
    });
    runtime.shutdown_timeout(LAST_ANSWER);
    if served.is_ok() {
        let counts = records.is_some_and(|records| records.are_counted());
        let rest = if counts { "; counting goes on until `kvmeter detach`" } else { "" };
        info!("ended{rest}");
    }
    served
}

/// A VM takes a descriptor, and a look at one takes one for each of its threads.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!("Cannot raise the limit of open files: {error}");
    }
}

fn begin_to_count(
    config: &config::Probe,
    sizes: Sizes,
) -> Result<(Counting, Option<Events>), RunError> {
    let started = Probe::start(&config.pin_dir, &check::btf_path(), sizes).and_then(|probe| {
        let records = Records::map(&probe).map_err(|source| ProbeError::Map { source })?;
        Ok((probe, records))
    });
    match started {
        Ok((Probe { events, hooks, mut image_hooks, adopted, .. }, records)) => {
            if !config.system_calls {
                image_hooks.disable(Method::Syscall, "probe.system_calls is false");
            }
            for state in &hooks {
                if let Some(failure) = &state.failure {
                    warn!(hook = state.hook.name, lost = state.hook.purpose, "not live: {failure}");
                }
            }
            let records = Arc::new(records);
            let mut self_test = SelfTest::new(Arc::clone(&records));
            for method in Method::ALL.into_iter().filter(|method| method.is_optional()) {
                image_hooks.attach_for_test(method, || self_test.run(method));
            }
            let (records, self_test) = (Some(records), Some(self_test));
            let image_hooks = Some(Arc::new(Mutex::new(image_hooks)));
            Ok((Counting { records, image_hooks, self_test, hooks, adopted }, Some(events)))
        }
        Err(error @ ProbeError::InUse { .. }) => Err(RunError::InUse(error)),
        Err(error) => {
            let error = format!("{}. Fix: {}", with_causes(&error), error.fix());
            warn!("VMs are served without counters: {error}");
            let failed = |hook| HookState { hook, method: None, failure: Some(error.clone()) };
            let hooks = SCHED_HOOKS.map(failed).to_vec();
            let (records, image_hooks, self_test) = (None, None, None);
            Ok((Counting { records, image_hooks, self_test, hooks, adopted: false }, None))
        }
    }
}

#[cfg(feature = "libvirt")]
fn connections(config: &Config) -> Vec<crate::inventory::Connection> {
    config.inventory.libvirt.iter().map(|uri| libvirt::connection(uri)).collect()
}

#[cfg(not(feature = "libvirt"))]
fn connections(_: &Config) -> Vec<crate::inventory::Connection> {
    Vec::new()
}

#[cfg(feature = "libvirt")]
fn start_libvirt(config: &Config, setup: &Setup) -> Vec<Arc<dyn Source>> {
    let start = |(id, uri): (u8, &String)| {
        let id = crate::inventory::SourceId(id);
        let (facts, slow) = (setup.facts.clone(), Arc::clone(&setup.slow));
        let polls = config.inventory.block_statistics;
        libvirt::start(id, uri.clone(), polls, facts, slow)
            .inspect_err(|error| warn!(uri, "No domains of libvirt are served: {error}"))
            .ok()
            .map(|source| -> Arc<dyn Source> { source })
    };
    (0..).zip(&config.inventory.libvirt).filter_map(start).collect()
}

#[cfg(not(feature = "libvirt"))]
fn start_libvirt(config: &Config, _: &Setup) -> Vec<Arc<dyn Source>> {
    if !config.inventory.libvirt.is_empty() {
        info!("This kvmeter was built without libvirt; VMs are found in procfs");
    }
    Vec::new()
}

fn hypervisor(config: &Config) -> Hypervisor {
    Hypervisor {
        software: "KVM".to_owned(),
        version: rustix::system::uname().release().to_string_lossy().into_owned(),
        object_id: config.inventory.hv_object_id,
    }
}

fn transport(config: &Config, tree: &Tree<Snapshot>) -> TransportConfig {
    let mut session = agentx::Config::new(tree.modules().map(|(root, _)| *root).collect());
    session.capabilities = mib::resources();
    session.timeout = config.agentx.timeout;
    session.ping_interval = config.agentx.ping;
    let mut transport = TransportConfig::new(config.agentx.address.clone(), session);
    transport.reconnect_max = config.agentx.reconnect_max;
    transport
}

/// The signals that end the agent. SIGHUP, of a terminal that is gone or of an operator who expects a reload, is one of
/// them: without a handler it would end the process before the session is closed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them.
    async fn end(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
        if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
            warn!("Cannot tell the service manager that kvmeter ends: {error}");
        }
    }
}

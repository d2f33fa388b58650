//! `kvmeter run`: puts the rooms together, in the order in which privileges are needed, and serves until it is
//! told to end.

mod report;

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
    counters::{Records, since_boot_ns},
    counting::{Registration, SharedHooks, self_test},
    inventory::{Assembly, Hypervisor, Registry},
    mib::{self, Switches},
    notify,
    privileges::{self, PrivilegeError},
    probe::{Events, HookState, Method, Probe, ProbeError, SCHED_HOOKS, with_causes},
    sources::procfs::{Counted, Procfs, ProcfsError},
    status::{Server, server::ServerError},
};
use report::Reporter;

/// How long the end may take that answers the status at the moment.
const LAST_ANSWER: Duration = Duration::from_millis(500);

/// What the master's sysORTable says of this agent.
const CAPABILITIES: &str = "The MIB module of RFC 7666 for virtual machines on KVM";

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
    /// The runtime of the agent.
    #[error("Cannot start the runtime that serves the master")]
    Runtime(#[source] io::Error),
}

/// What the probes gave, or why there are none.
struct Counting {
    records: Option<Arc<Records>>,
    image_hooks: Option<SharedHooks>,
    hooks: Vec<HookState>,
    adopted: bool,
}

/// Serves the VMs of this host until SIGTERM or SIGINT.
///
/// # Errors
///
/// [`RunError`], all before the first request is served.
pub fn run(config: &Config) -> Result<(), RunError> {
    let started = Instant::now();
    // First of all, for it tells whether another agent has these directories.
    let status = Server::bind(&config.state.runtime_dir)?;
    raise_descriptor_limit();
    let (counting, events) = begin_to_count(&config.probe);
    privileges::drop_to(&privileges::kept().collect::<Vec<_>>())?;

    let registry = Arc::new(Registry::new(hypervisor(config), since_boot_ns()));
    let counted = match (&counting.records, events) {
        (Some(records), Some(events)) => Some(Counted {
            events,
            records: Arc::clone(records),
            tracker: Arc::new(Registration::adopt(Arc::clone(records))),
        }),
        _ => None,
    };
    let (sink, notifier, notices, notified) = notify::pipeline(config.notifications.bulk_window);
    let assembly = Arc::new(Assembly::new(
        Arc::clone(&registry),
        config.inventory.procfs,
        &config.state.dir,
        Box::new(move |change| sink.note(change)),
    ));
    if let (Some(records), Some(hooks)) = (&counting.records, &counting.image_hooks) {
        assembly.count_images(Arc::clone(records), Arc::clone(hooks));
    }
    // Also where only libvirt's domains are served: their processes are what is counted.
    let procfs = Procfs::start(Arc::clone(&assembly), counted)?;
    let libvirt = start_libvirt(config, &assembly);

    let statistics = Arc::new(Statistics::default());
    let reporter = Arc::new(Reporter {
        config: config.clone(),
        started,
        counting,
        registry: Arc::clone(&registry),
        assembly,
        procfs: procfs.statistics(),
        libvirt,
        statistics: Arc::clone(&statistics),
        notified,
    });
    let readings = reporter.readings();
    let records = reporter.counting.records.clone();
    let switches = Arc::new(Switches::new(config.notifications.per_vm, config.notifications.bulk));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .map_err(RunError::Runtime)?;
    let served = runtime.block_on(async {
        // Only from here on are the signals caught; before, they end the process at once.
        let [terminate, interrupt] = [SignalKind::terminate(), SignalKind::interrupt()].map(signal);
        let (terminate, interrupt) =
            (terminate.map_err(RunError::Runtime)?, interrupt.map_err(RunError::Runtime)?);
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
        agentx::run(
            transport(config),
            || mib::Snapshot::new(registry.view(), Arc::clone(&readings), &*switches),
            notices,
            &statistics,
            told_to_end(terminate, interrupt),
        )
        .await;
        Ok(())
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

fn begin_to_count(config: &config::Probe) -> (Counting, Option<Events>) {
    let started = Probe::start(&config.pin_dir, &check::btf_path()).and_then(|probe| {
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
            for method in Method::ALL.into_iter().filter(|method| method.is_optional()) {
                image_hooks.attach_for_test(method, || self_test(&records, method));
            }
            let records = Some(records);
            let image_hooks = Some(Arc::new(Mutex::new(image_hooks)));
            (Counting { records, image_hooks, hooks, adopted }, Some(events))
        }
        Err(error) => {
            let error = with_causes(&error);
            warn!("VMs are served without counters: {error}. `kvmeter check` says more");
            let failed = |hook| HookState { hook, method: None, failure: Some(error.clone()) };
            let hooks = SCHED_HOOKS.map(failed).to_vec();
            (Counting { records: None, image_hooks: None, hooks, adopted: false }, None)
        }
    }
}

#[cfg(feature = "libvirt")]
fn start_libvirt(config: &Config, assembly: &Arc<Assembly>) -> Option<Arc<libvirt::Statistics>> {
    let uri = config.inventory.libvirt.clone()?;
    libvirt::start(uri, config.inventory.block_statistics, Arc::clone(assembly))
        .inspect_err(|error| warn!("No domains of libvirt are served: {error}"))
        .ok()
}

#[cfg(not(feature = "libvirt"))]
fn start_libvirt(config: &Config, _: &Arc<Assembly>) -> Option<()> {
    if config.inventory.libvirt.is_some() {
        info!("This kvmeter was built without libvirt; VMs are found in procfs");
    }
    None
}

fn hypervisor(config: &Config) -> Hypervisor {
    Hypervisor {
        software: "KVM".to_owned(),
        version: rustix::system::uname().release().to_string_lossy().into_owned(),
        object_id: config.inventory.hv_object_id,
    }
}

fn transport(config: &Config) -> TransportConfig {
    let mut session = agentx::Config::new(vec![mib::VM_MIB]);
    session.capabilities = vec![(mib::VM_MIB, CAPABILITIES.to_owned())];
    session.timeout = config.agentx.timeout;
    session.ping_interval = config.agentx.ping;
    let mut transport = TransportConfig::new(config.agentx.address.clone(), session);
    transport.reconnect_max = config.agentx.reconnect_max;
    transport
}

async fn told_to_end(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
        warn!("Cannot tell the service manager that kvmeter ends: {error}");
    }
}

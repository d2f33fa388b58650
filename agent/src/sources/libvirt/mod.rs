//! The domains of a libvirt connection, running or not.
//!
//! Five kinds of threads, so that nothing that hangs stops what does not need it: libvirt's event loop, which only
//! puts events into a channel; a thread for each connection, which describes the domains that an event is about, by calls
//! that libvirt answers at once; one that asks for the hypervisor's version, for which libvirt may have to start QEMUs; threads
//! for the XML of domains, which may have to wait for a job of the domain; and threads for the disks of domains, which may have
//! to wait for a QEMU that hangs. All connections are read-only. A connection that libvirt does not keep alive ends after
//! [`KEEP_ALIVE`].
//!
//! Except for QEMU's own counts of disk I/O, nothing is polled. While libvirt does not answer, what it reported last
//! stays; the source waits for its socket to appear, and tries ever more seldom in case the socket cannot be watched.

mod address;
mod block_statistics;
mod config_watch;
mod connection_state;
mod disk_queries;
mod domain;
mod domain_xml;
mod event_loop;
mod events;
mod late_reads;
mod pace;
mod process_files;
#[cfg(test)]
mod replays;
mod socket_watch;
mod state;
mod transitions;
mod trial;
mod xml;

use std::{
    cell::Cell,
    collections::BTreeSet,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::unbounded;
use tracing::{debug, info, warn};
use virt::{
    connect::Connect,
    error::{Error, clear_error_callback},
    event::{event_register_default_impl, event_run_default_impl},
};

use super::{Command, Health};
use crate::{
    counters::SlowValues,
    heartbeat::Heartbeat,
    inventory::{Connection, DomainFact, SourceId, VmUuid},
    worker::Facts,
};
use address::Address;
use connection_state::ConnectionState;
use disk_queries::{DiskQueries, Question};
use domain::describe;
use domain_xml::DomainXmls;
use event_loop::EventLoop;
use events::{Event, EventSender, EventSubscription};
use socket_watch::SocketWatch;

pub use trial::{TrialError, try_connections};

/// Pauses between two attempts to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Where a socket cannot be watched (another host, another transport) there is no other way to see a daemon
/// return.
const BLIND_PAUSE: Duration = Duration::from_secs(2);

/// Seconds between two questions to a silent libvirtd whether it is there, and how many may stay unanswered.
const KEEP_ALIVE: (i32, u32) = (10, 3);

/// A libvirt connection as others see it: commands go in, its health comes out.
#[derive(Debug)]
pub struct Handle {
    shared: Arc<ConnectionState>,
    disk_queries: Arc<DiskQueries>,
}

/// What the core has to know about the connection with this URI. Domains of the drivers for QEMU and Cloud Hypervisor
/// are processes that hold a KVM VM, of this host unless the URI leads to another one; those of others are known by libvirt
/// alone.
#[must_use]
pub fn connection(uri: &str) -> Connection {
    let address = Address::of(uri);
    let is_without =
        matches!(address.driver, "test" | "xen" | "lxc" | "openvz" | "vz" | "esx" | "vpx");
    let has_processes = !is_without && address.is_local();
    Connection { uri: uri.to_owned(), has_processes, is_unnamed: address.driver == "ch" }
}

/// Starts the source. QEMU's own counts of disk I/O are polled at this interval, or never. The source lives as long as
/// the process: a call to a libvirt that hangs cannot be ended.
///
/// # Errors
///
/// When a thread cannot be started.
pub fn start(
    id: SourceId,
    uri: String,
    block_statistics: Option<Duration>,
    facts: Facts,
    slow: Arc<SlowValues>,
) -> std::io::Result<Arc<Handle>> {
    let shared = Arc::new(ConnectionState::new(id, uri, block_statistics, facts, slow));
    let disk_queries = Arc::new(DiskQueries::new(Arc::clone(&shared)));
    let worker = Worker {
        xmls: DomainXmls::new(&shared),
        shared: Arc::clone(&shared),
        disk_queries: Arc::clone(&disk_queries),
        watches_files: Cell::new(false),
    };
    thread::Builder::new().name(format!("libvirt {}", id.0)).spawn(move || worker.run())?;
    Ok(Arc::new(Handle { shared, disk_queries }))
}

impl super::Source for Handle {
    fn name(&self) -> &'static str {
        "libvirt"
    }

    fn connection(&self) -> Option<(SourceId, &str)> {
        Some((self.shared.id, &self.shared.uri))
    }

    fn command(&self, command: Command) {
        match command {
            Command::Describe(uuid) => {
                if let Some(events) = self.shared.events() {
                    // A source that has ended describes all domains again when it begins again.
                    let _ = events.send(Event::Changed(uuid));
                }
            }
            Command::QueryDisks(query) => {
                self.shared.set_query(&query);
                if query.asks_now {
                    let io = self.shared.block_statistics.is_some() && query.wants_io;
                    self.disk_queries.ask(query.uuid, Question::of_change(io));
                }
                if let Some(events) = self.shared.events() {
                    // The thread that follows events knows when the next poll is due.
                    let _ = events.send(Event::Polled);
                }
            }
            Command::Rescan(_)
            | Command::ResolvePaths(..)
            | Command::Entrust(..)
            | Command::Reached(_) => {}
        }
    }

    fn health(&self) -> Health {
        self.shared.health()
    }

    fn scans(&self) -> u64 {
        self.shared.scans()
    }

    fn heartbeat(&self) -> Option<Arc<Heartbeat>> {
        // A libvirt that hangs is shown as stale; the agent goes on without it.
        None
    }
}

/// Reads a domain's XML, for the fuzzer: any text is described, or refused.
pub fn read_xml(text: &str) {
    drop(xml::parse(text));
}

struct Worker {
    shared: Arc<ConnectionState>,
    xmls: DomainXmls,
    disk_queries: Arc<DiskQueries>,
    /// Whether the thread that watches libvirt's files runs.
    watches_files: Cell<bool>,
}

impl Worker {
    fn run(self) {
        let _end = self.shared.facts().end_guard("libvirt");
        if let Err(error) = run_event_loop() {
            warn!("No domains of libvirt are served: its event loop does not start: {error}");
            self.shared.lost(error);
            return;
        }
        let mut pause = FIRST_PAUSE;
        let mut reported = None;
        loop {
            // Before the attempt: a socket that appears during it is seen.
            let socket = SocketWatch::of(&self.shared.uri);
            let connected = Instant::now();
            let error = match self.serve() {
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => error.message().to_owned(),
            };
            self.shared.report(DomainFact::Lost);
            self.shared.lost(error.clone());
            if connected.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            if reported.as_ref() != Some(&error) {
                warn!(uri = self.shared.uri, error, "no libvirt; what it reported last stays");
                reported = Some(error);
            }
            pause = match socket {
                Some(socket) => {
                    if socket.wait(pause) {
                        FIRST_PAUSE
                    } else {
                        (pause * 2).min(LAST_PAUSE)
                    }
                }
                None => {
                    thread::sleep(pause);
                    (pause * 2).min(BLIND_PAUSE)
                }
            };
        }
    }

    /// Connects and follows the events until the connection is lost.
    fn serve(&self) -> Result<(), Error> {
        let shared = &*self.shared;
        let uri = Some(&*shared.uri);
        let connection = shared.call(|| Connect::open_read_only(uri))?;
        if let Err(error) = connection.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1) {
            debug!(uri, "no keep-alive: {}", error.message());
        }
        shared.call(|| self.xmls.begin())?;
        let (sender, receiver) = unbounded();
        let last_event = shared.last_event();
        // Registered before the list is read: what changes meanwhile is an event that waits.
        let events = EventSender { events: sender.clone(), shared: Arc::clone(&self.shared) };
        let _subscription = shared.call(|| EventSubscription::new(&connection, &events))?;
        self.watch_files();
        let is_first = shared.scans() == 0;
        // No event of an earlier connection is taken any more.
        shared.report(DomainFact::EventsUnderWay(BTreeSet::new(), last_event));
        let undescribed = self.list(&connection)?;
        shared.live(sender);
        info!(uri = shared.uri, domains = shared.len(), "libvirt is live");
        self.describe_hypervisor(&connection);
        EventLoop::new(self, &connection, undescribed).run(&receiver, is_first);
        Ok(())
    }

    /// Has a thread report the hypervisor's name and version. libvirt may start each QEMU of the host to find the version, which
    /// takes seconds that no domain and no event waits for.
    fn describe_hypervisor(&self, connection: &Connect) {
        let (shared, connection) = (Arc::clone(&self.shared), connection.clone());
        let describe = move || {
            let _end = shared.facts().end_guard("libvirt version");
            let driver = shared.call(|| connection.driver_type());
            let version = shared.call(|| connection.hyp_version());
            if let (Ok(software), Ok(version)) = (driver, version) {
                // virConnectGetVersion(): major * 1,000,000 + minor * 1,000 + release
                let version =
                    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
                shared.report(DomainFact::Hypervisor { software, version });
            }
        };
        let started = thread::Builder::new().name("libvirt version".to_owned()).spawn(describe);
        if let Err(error) = started {
            warn!(uri = self.shared.uri, "The hypervisor's version is not read: {error}");
        }
    }

    /// Reports all domains. Those that libvirt could not describe.
    fn list(&self, connection: &Connect) -> Result<BTreeSet<VmUuid>, Error> {
        let handles = self.shared.call(|| connection.list_all_domains(0))?;
        let mut domains = Vec::with_capacity(handles.len());
        let mut undescribed = BTreeSet::new();
        for handle in &handles {
            let files = &self.shared.process_files;
            match self.shared.call(|| describe(handle, files, &self.xmls)) {
                Ok(domain) => domains.push(domain),
                // It went between the list and this.
                Err(error) if error.is_gone() => {}
                Err(error) => {
                    debug!("A domain cannot be described: {error}");
                    undescribed.insert(handle.uuid()?.into());
                }
            }
        }
        self.shared.list(&domains, &undescribed);
        self.shared.report(DomainFact::Listed(domains, undescribed.clone()));
        Ok(undescribed)
    }
}

/// Starts libvirt's event loop, of which there is one in a process; it must be there before a connection is made.
fn run_event_loop() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    let start = || {
        // Errors are reported where they are returned; libvirt would print each a second time.
        clear_error_callback();
        event_register_default_impl().map_err(|error| error.message().to_owned())?;
        let run = || loop {
            if let Err(error) = event_run_default_impl() {
                warn!("libvirt's event loop: {}", error.message());
                // Only against a loop that fails at once, again and again.
                thread::sleep(FIRST_PAUSE);
            }
        };
        let thread = thread::Builder::new().name("libvirt events".to_owned()).spawn(run);
        thread.map(drop).map_err(|error| error.to_string())
    };
    STARTED.get_or_init(start).clone()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::Fact;

    #[test]
    fn the_domains_wait_for_no_version_of_the_hypervisor() {
        let (sender, facts) = unbounded();
        let facts_of = Facts::new(sender, tokio::sync::mpsc::unbounded_channel().0);
        let uri = "test:///default".to_owned();
        let _handle = start(SourceId(0), uri, None, facts_of, Arc::default()).unwrap();
        let mut has_domains = false;
        loop {
            match facts.recv_timeout(Duration::from_secs(60)).unwrap() {
                Fact::Libvirt(_, DomainFact::Listed(domains, _)) => {
                    has_domains = domains.len() == 1;
                }
                Fact::Libvirt(_, DomainFact::Hypervisor { software, version }) => {
                    assert!(has_domains, "{software} {version} came first");
                    break;
                }
                _ => {}
            }
        }
    }

    #[test]
    fn what_a_uri_says_of_the_processes_of_domains() {
        for (uri, expected) in [
            ("qemu:///system", (true, false)),
            ("qemu+ssh://host/system", (false, false)),
            ("ch:///system", (true, true)),
            ("ch+unix:///system", (true, true)),
            ("ch+ssh://host/system", (false, true)),
            ("test:///default", (false, false)),
            ("chx:///system", (true, false)),
        ] {
            let found = connection(uri);
            assert_eq!((found.has_processes, found.is_unnamed), expected, "{uri}");
        }
    }
}

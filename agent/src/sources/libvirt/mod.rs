//! The domains of libvirt, running or not.
//!
//! Three kinds of threads, so that nothing that hangs stops what does not need it: libvirt's event loop, which only
//! puts events into a channel; the source itself, which asks for whatever an event is about, by calls that libvirt
//! answers without the domain's monitor; and threads for the disks of domains, which may have to wait for a QEMU
//! that hangs. All connections are read-only.
//!
//! But for what QEMU counts of its disks' I/O, nothing is refreshed by the clock. While libvirt does not answer, what
//! it said last stays; the source waits for its socket to appear, and looks itself ever more seldom in case that
//! cannot be seen.

mod block_statistics;
mod config_watch;
mod disk_queries;
mod domain;
mod event_loop;
mod events;
#[cfg(test)]
mod replays;
mod socket_watch;
mod state;
mod transitions;
mod xml;

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Sender, bounded, unbounded};
use tracing::{debug, info, warn};
use virt::{
    connect::Connect,
    error::{Error, clear_error_callback},
    event::{event_register_default_impl, event_run_default_impl},
};

use crate::inventory::{Assembly, Domain, VmUuid};
use disk_queries::{Blocks, Question};
use domain::describe;
use event_loop::Following;
use events::{Event, EventSubscription};
use socket_watch::SocketWatch;

/// Who asks for the status waits so long for libvirt's answer; one that takes longer hangs.
const SLOW: Duration = Duration::from_millis(500);

/// Between two attempts to connect: at first, and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// Where a socket cannot be watched (another host, another transport) there is no other way to see a daemon
/// return.
const BLIND_PAUSE: Duration = Duration::from_secs(2);

/// What this source is doing, for the status.
#[derive(Debug, Default)]
pub struct Statistics {
    /// Lists of all domains that were taken.
    pub scans: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Why there is no connection.
    error: Option<String>,
    /// Since when there is none.
    lost: Option<SystemTime>,
    /// When a call was answered last.
    answered: Option<SystemTime>,
    /// Reaches the source while it follows events.
    source: Option<Sender<Event>>,
}

/// How this source is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Health {
    /// `live`, `stale`, or why there is no connection.
    pub state: String,
    /// Since when what it said may be old.
    pub stale_since: Option<SystemTime>,
}

impl Statistics {
    /// How the source is now. Asks libvirt whether it is there, and waits half a second for that at most.
    #[must_use]
    pub fn health(&self) -> Health {
        let mut answers = true;
        if let Some(source) = self.source() {
            let (reply, answer) = bounded(1);
            answers = source.send(Event::Ping(reply)).is_ok() && answer.recv_timeout(SLOW).is_ok();
        }
        let state = self.state();
        // A storm of changes keeps the source from this question, but not from answers.
        let is_old = |at: &SystemTime| at.elapsed().is_ok_and(|age| age >= SLOW);
        let hangs = state.answered.filter(|at| !answers && is_old(at));
        let (text, stale_since) = match (&state.error, state.lost, hangs) {
            (Some(error), since, _) => (error.clone(), since),
            (None, _, Some(since)) => ("it does not answer".to_owned(), Some(since)),
            (None, Some(since), None) => ("connecting".to_owned(), Some(since)),
            (None, None, None) => ("live".to_owned(), None),
        };
        Health { state: text, stale_since }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn source(&self) -> Option<Sender<Event>> {
        self.state().source.clone()
    }

    fn live(&self, source: Sender<Event>) {
        let mut state = self.state();
        (state.error, state.lost, state.source) = (None, None, Some(source));
    }

    fn lost(&self, error: String) {
        let mut state = self.state();
        state.source = None;
        state.error = Some(error);
        state.lost.get_or_insert_with(SystemTime::now);
    }

    /// Asks libvirt, and notes that it has answered.
    fn asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        let answer = ask();
        self.state().answered = Some(SystemTime::now());
        answer
    }
}

/// Starts the source. What QEMU counts of its disks' I/O is asked for this often, or never. It lives as long as the process: a call to a libvirt that hangs cannot be ended.
///
/// # Errors
///
/// When a thread cannot be started.
pub fn start(
    uri: String,
    block_statistics: Option<Duration>,
    assembly: Arc<Assembly>,
) -> std::io::Result<Arc<Statistics>> {
    let statistics = Arc::new(Statistics::default());
    statistics.state().lost = Some(SystemTime::now());
    let of_source = Arc::clone(&statistics);
    let to_ask = Arc::clone(&statistics);
    assembly.ask_libvirt_by(move |uuid| {
        if let Some(source) = to_ask.source() {
            // A source that has ended takes all domains anew when it begins again.
            let _ = source.send(Event::Changed(uuid));
        }
    });
    let looks_out = Cell::new(false);
    let source = Source { uri, block_statistics, assembly, statistics: of_source, looks_out };
    thread::Builder::new().name("libvirt".to_owned()).spawn(move || source.run())?;
    Ok(statistics)
}

/// Reads a domain's XML, for the fuzzer: any text tells something, or is refused.
pub fn read_xml(text: &str) {
    drop(xml::parse(text));
}

struct Source {
    uri: String,
    /// How often QEMU's counts are asked for.
    block_statistics: Option<Duration>,
    assembly: Arc<Assembly>,
    statistics: Arc<Statistics>,
    /// Whether there is a thread that follows what libvirt tells no event of.
    looks_out: Cell<bool>,
}

impl Source {
    fn run(self) {
        if let Err(error) = run_event_loop() {
            warn!("No domains of libvirt are served: its event loop does not start: {error}");
            self.statistics.lost(error.to_string());
            return;
        }
        let blocks = Blocks::new(self.uri.clone(), Arc::clone(&self.assembly));
        let mut pause = FIRST_PAUSE;
        let mut reported = None;
        loop {
            // Before the attempt: a socket that appears during it is seen.
            let socket_watch = SocketWatch::of(&self.uri);
            let connected = Instant::now();
            let error = match self.serve(&blocks) {
                Ok(()) => "the connection was closed".to_owned(),
                Err(error) => error.message().to_owned(),
            };
            self.assembly.libvirt_is_gone();
            self.statistics.lost(error.clone());
            if connected.elapsed() > LAST_PAUSE {
                pause = FIRST_PAUSE;
            }
            if reported.as_ref() != Some(&error) {
                warn!(uri = self.uri, error, "no libvirt; what it said last stays");
                reported = Some(error);
            }
            pause = match socket_watch {
                Some(socket_watch) => {
                    if socket_watch.wait(pause) {
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
    fn serve(&self, blocks: &Blocks) -> Result<(), Error> {
        let uri = Some(&*self.uri);
        let connection = self.statistics.asking(|| Connect::open_read_only(uri))?;
        let (sender, receiver) = unbounded();
        // Registered before the list is taken: what changes meanwhile is an event that waits.
        let _subscription =
            self.statistics.asking(|| EventSubscription::new(&connection, &sender))?;
        self.look_out();
        self.describe_hypervisor(&connection);
        let is_first = self.statistics.scans.load(Relaxed) == 0;
        self.take_all(&connection, blocks)?;
        self.statistics.live(sender);
        info!(uri = self.uri, domains = self.assembly.counts().0, "libvirt is live");
        Following::new(self, &connection, blocks).run(&receiver, is_first);
        Ok(())
    }

    fn describe_hypervisor(&self, connection: &Connect) {
        let driver = self.statistics.asking(|| connection.driver_type());
        let version = self.statistics.asking(|| connection.hyp_version());
        if let (Ok(driver), Ok(version)) = (driver, version) {
            // virConnectGetVersion(): major * 1,000,000 + minor * 1,000 + release
            let version =
                format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000);
            self.assembly.set_hypervisor(driver, version);
        }
    }

    fn take_all(&self, connection: &Connect, blocks: &Blocks) -> Result<(), Error> {
        self.statistics.scans.fetch_add(1, Relaxed);
        let handles = self.statistics.asking(|| connection.list_all_domains(0))?;
        let domains: Vec<Domain> = handles
            .iter()
            .filter_map(|handle| match self.statistics.asking(|| describe(handle)) {
                Ok(domain) => Some(domain),
                Err(error) => {
                    // It went between the list and this.
                    debug!("A domain cannot be described: {}", error.message());
                    None
                }
            })
            .collect();
        let uuids: Vec<VmUuid> = domains.iter().map(|domain| domain.uuid).collect();
        self.assembly.set_domains(domains);
        let question = Question::of_change(self.block_statistics.is_some());
        for uuid in uuids {
            blocks.ask(uuid, question);
        }
        Ok(())
    }
}

/// libvirt has one event loop in a process, which must be there before a connection is made.
fn run_event_loop() -> Result<(), Box<dyn std::error::Error>> {
    static REGISTERED: Once = Once::new();
    let mut result = Ok(());
    REGISTERED.call_once(|| {
        // Errors are told by whoever gets them; libvirt would print each a second time.
        clear_error_callback();
        result = event_register_default_impl().map_err(Into::into).and_then(|()| {
            let run = || loop {
                if let Err(error) = event_run_default_impl() {
                    warn!("libvirt's event loop: {}", error.message());
                    // Only against a loop that fails at once, again and again.
                    thread::sleep(FIRST_PAUSE);
                }
            };
            thread::Builder::new().name("libvirt events".to_owned()).spawn(run)?;
            Ok(())
        });
    });
    result
}

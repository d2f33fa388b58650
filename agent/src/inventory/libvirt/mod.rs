//! The domains of libvirt, running or not.
//!
//! Three kinds of threads, so that nothing that hangs stops what does not need it: libvirt's event loop, which only
//! puts events into a channel; the source itself, which asks for whatever an event is about, by calls that libvirt
//! answers without the domain's monitor; and threads for the disks of domains, which may have to wait for a QEMU
//! that hangs. All connections are read-only.
//!
//! But for what QEMU counts of its disks' I/O, nothing is refreshed by the clock. While libvirt does not answer, what it said last stays; the source waits for
//! its socket to appear, and looks itself ever more seldom in case that cannot be seen.

mod autostart;
mod blocks;
mod events;
#[cfg(test)]
mod replays;
mod socket;
mod state;
mod transitions;
mod xml;

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    ffi::c_int,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tracing::{debug, info, warn};
use uuid::Uuid;
use virt::{
    connect::Connect,
    domain::Domain as Handle,
    error::{Error, ErrorNumber, clear_error_callback},
    event::{event_register_default_impl, event_run_default_impl},
    sys,
};

use super::{Assembly, AutoStart, Domain, Persistence};
use autostart::Links;
use blocks::{Blocks, Question};
use events::{Event, Registered};
use socket::Appearance;
use transitions::Transitions;

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
    /// When the call began that is not answered yet.
    asked: Option<SystemTime>,
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
        let hangs = state.asked.filter(|_| !answers);
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

    /// Notes that libvirt is asked, and that it has answered.
    fn asking<T>(&self, ask: impl FnOnce() -> T) -> T {
        self.state().asked = Some(SystemTime::now());
        let answer = ask();
        self.state().asked = None;
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
            let appearance = Appearance::watch(&self.uri);
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
            pause = match appearance {
                Some(appearance) => {
                    if appearance.wait(pause) {
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
        let _registered = self.statistics.asking(|| Registered::new(&connection, &sender))?;
        self.look_out();
        self.describe_hypervisor(&connection);
        self.take_all(&connection, blocks)?;
        self.statistics.live(sender);
        info!(uri = self.uri, domains = self.assembly.counts().0, "libvirt is live");
        self.follow(&connection, &receiver, blocks);
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
        let uuids: Vec<[u8; 16]> = domains.iter().map(|domain| domain.uuid).collect();
        self.assembly.set_domains(domains);
        for uuid in uuids {
            blocks.ask(uuid, self.all());
        }
        Ok(())
    }

    /// Follows the links of domains that start with the host, once they have a place: libvirt makes it when it
    /// first defines a domain.
    fn look_out(&self) {
        if self.looks_out.get() {
            return;
        }
        let Some(links) = Links::of(&self.uri) else { return };
        let statistics = Arc::clone(&self.statistics);
        let follow = move || {
            while links.wait().is_ok() {
                // Without a connection, all is asked for with the next one.
                if let Some(source) = statistics.source() {
                    let _ = source.send(Event::AutoStart);
                }
            }
        };
        match thread::Builder::new().name("libvirt files".to_owned()).spawn(follow) {
            Ok(_) => self.looks_out.set(true),
            Err(error) => debug!("vmAutoStart is not followed: {error}"),
        }
    }

    /// One question for all domains, that no domain is asked for.
    fn take_auto_start(&self, connection: &Connect) {
        const LIST: u32 = sys::VIR_CONNECT_LIST_DOMAINS_AUTOSTART;
        let listed = self.statistics.asking(|| connection.list_all_domains(LIST));
        let uuids: Result<BTreeSet<_>, _> = listed.and_then(|handles| {
            handles.iter().map(|handle| Ok(handle.uuid()?.into_bytes())).collect()
        });
        match uuids {
            Ok(uuids) => self.assembly.set_auto_start(&uuids),
            Err(error) => debug!("which domains start with the host: {}", error.message()),
        }
    }

    /// What is asked of a domain's disks when it is different.
    const fn all(&self) -> Question {
        Question { sizes: true, io: self.block_statistics.is_some() }
    }

    /// Waits for an event, and asks for QEMU's counts meanwhile. `None`: there will be none.
    fn next(
        &self,
        receiver: &Receiver<Event>,
        blocks: &Blocks,
        asked: &mut Instant,
    ) -> Option<Event> {
        loop {
            let due = self
                .block_statistics
                .filter(|_| !self.assembly.domains_with_io().is_empty())
                .and_then(|pause| asked.checked_add(pause));
            // With nothing to count, nothing but an event wakes this thread.
            let Some(due) = due else { return receiver.recv().ok() };
            match receiver.recv_deadline(due) {
                Err(RecvTimeoutError::Timeout) => {
                    *asked = Instant::now();
                    for uuid in self.assembly.domains_with_io() {
                        blocks.ask(uuid, Question::IO);
                    }
                }
                event => return event.ok(),
            }
        }
    }

    fn follow(&self, connection: &Connect, receiver: &Receiver<Event>, blocks: &Blocks) {
        let (mut asked, mut transitions) = (Instant::now(), Transitions::default());
        while let Some(first) = self.next(receiver, blocks, &mut asked) {
            // What has come meanwhile is answered together, each domain once.
            let mut changed = BTreeSet::new();
            let mut happened: BTreeMap<[u8; 16], Vec<(c_int, c_int)>> = BTreeMap::new();
            let mut auto_start_changed = false;
            for event in std::iter::once(first).chain(receiver.try_iter()) {
                match event {
                    Event::Changed(uuid) => {
                        changed.insert(uuid);
                    }
                    Event::LifeCycle(uuid, event, detail) => {
                        debug!(uuid = %Uuid::from_bytes(uuid), event, detail, "life-cycle event");
                        changed.insert(uuid);
                        happened.entry(uuid).or_default().push((event, detail));
                    }
                    Event::AutoStart => auto_start_changed = true,
                    Event::Closed => return,
                    Event::Ping(reply) => {
                        if self.statistics.asking(|| connection.lib_version()).is_ok() {
                            // Whoever asked may have gone.
                            let _ = reply.send(());
                        }
                    }
                }
            }
            self.look_out();
            if auto_start_changed {
                self.take_auto_start(connection);
            }
            if changed.is_empty() {
                continue;
            }
            let mut changes: BTreeMap<_, _> = changed
                .into_iter()
                .filter_map(|uuid| Some((uuid, self.statistics.asking(|| look(connection, uuid))?)))
                .collect();
            let mut states = Vec::new();
            for (uuid, domain) in &mut changes {
                let events = happened.remove(uuid).unwrap_or_default();
                let went = transitions.through(*uuid, &events, domain.as_mut());
                states.extend(went.into_iter().map(|state| (*uuid, state)));
            }
            // Of these, libvirt has not said how they are now.
            for (uuid, events) in happened {
                let went = transitions.through(uuid, &events, None);
                states.extend(went.into_iter().map(|state| (uuid, state)));
            }
            let there: Vec<_> = changes
                .iter()
                .filter_map(|(uuid, domain)| domain.is_some().then_some(*uuid))
                .collect();
            self.assembly.update_domains(changes, &states);
            for uuid in there {
                blocks.ask(uuid, self.all());
            }
        }
    }
}

/// A domain as it is now: `None` = libvirt did not say, `Some(None)` = it is gone.
fn look(connection: &Connect, uuid: [u8; 16]) -> Option<Option<Domain>> {
    let found = connection
        .lookup_domain_by_uuid(Uuid::from_bytes(uuid))
        .and_then(|handle| describe(&handle));
    match found {
        Ok(domain) => Some(Some(domain)),
        Err(error) if error.code().is_known_and(|code| code == ErrorNumber::NoDomain) => Some(None),
        Err(error) => {
            debug!(uuid = %Uuid::from_bytes(uuid), "not described: {}", error.message());
            None
        }
    }
}

/// Everything that libvirt tells of a domain without asking its monitor. What of it fails is not known.
fn describe(handle: &Handle) -> Result<Domain, Error> {
    let uuid = handle.uuid()?.into_bytes();
    let name = handle.name()?;
    let (state, reason) = handle.state()?;
    let has_managed_save = handle.has_managed_save(0).unwrap_or(false);
    let (admin_state, oper_state) = state::of(state, reason, has_managed_save);
    debug!(domain = name, ?state, ?reason, has_managed_save, ?oper_state, "described");
    let told = match xml::parse(&handle.xml_desc(0)?) {
        Ok(told) => told,
        Err(error) => {
            warn!(domain = name, "{error}; only its name and state are served");
            xml::Description::default()
        }
    };
    let auto_start = match handle.autostart() {
        Ok(true) => AutoStart::Enabled,
        Ok(false) => AutoStart::Disabled,
        Err(_) => AutoStart::Unknown,
    };
    let persistence = match handle.is_persistent() {
        Ok(true) => Persistence::Persistent,
        Ok(false) => Persistence::Transient,
        Err(_) => Persistence::Unknown,
    };
    Ok(Domain {
        uuid,
        name,
        os_type: told.os,
        admin_state,
        oper_state,
        is_active: handle.is_active().unwrap_or(true),
        auto_start,
        persistence,
        cpus: told.vcpus,
        max_cpus: told.max_vcpus,
        vcpu_ids: told.vcpu_ids,
        memory: told.memory,
        disks: told.disks,
        nics: told.nics,
    })
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

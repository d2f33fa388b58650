//! What is done while libvirt is there: its events are followed.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::c_int,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tracing::debug;
use virt::{connect::Connect, sys};

use super::{
    Source,
    config_watch::{ConfigChange, ConfigWatch},
    disk_queries::{Blocks, Question},
    domain::query,
    events::Event,
    transitions::Transitions,
};
use crate::inventory::VmUuid;

/// A migration that is given up is no event: so often it is asked whether it goes on.
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);

/// The sizes of disks are asked for with each of so many questions for their I/O: a call more for each disk.
const SIZES_EVERY: u32 = 6;

/// The events of one connection.
pub(super) struct Following<'a> {
    source: &'a Source,
    connection: &'a Connect,
    blocks: &'a Blocks,
    transitions: Transitions,
    /// When QEMU's counts were asked for last.
    asked: Instant,
    /// How often they were.
    rounds: u32,
    /// Domains whose memory is copied, and when it was asked last whether that is a migration.
    copying: BTreeSet<VmUuid>,
    asked_copying: Instant,
}

/// Events that are answered together.
#[derive(Debug, Default)]
struct Batch {
    changed: BTreeSet<VmUuid>,
    happened: BTreeMap<VmUuid, Vec<(c_int, c_int)>>,
    copying: BTreeSet<VmUuid>,
    auto_start: bool,
}

impl<'a> Following<'a> {
    pub(super) fn new(source: &'a Source, connection: &'a Connect, blocks: &'a Blocks) -> Self {
        Self {
            source,
            connection,
            blocks,
            transitions: Transitions::default(),
            asked: Instant::now(),
            rounds: 0,
            copying: BTreeSet::new(),
            asked_copying: Instant::now(),
        }
    }

    /// Follows the events until the connection is lost. `is_first`: what has happened before is not told.
    pub(super) fn run(&mut self, receiver: &Receiver<Event>, is_first: bool) {
        if is_first {
            let mut batch = Batch::default();
            let is_closed = receiver.try_iter().any(|event| self.gather(event, &mut batch));
            batch.happened.clear();
            self.take(batch);
            if is_closed {
                return;
            }
        }
        while let Some(first) = self.next(receiver) {
            // What has come meanwhile is answered together, each domain once.
            let mut batch = Batch::default();
            let mut events = std::iter::once(first).chain(receiver.try_iter());
            let is_closed = events.any(|event| self.gather(event, &mut batch));
            self.take(batch);
            if is_closed {
                return;
            }
        }
    }

    /// Puts an event to others. Whether the connection is lost.
    fn gather(&self, event: Event, batch: &mut Batch) -> bool {
        match event {
            Event::Changed(uuid) => {
                batch.changed.insert(uuid);
            }
            Event::LifeCycle(uuid, event, detail) => {
                debug!(uuid = %uuid, event, detail, "life-cycle event");
                batch.changed.insert(uuid);
                batch.happened.entry(uuid).or_default().push((event, detail));
            }
            Event::Copying(uuid) => {
                batch.changed.insert(uuid);
                batch.copying.insert(uuid);
            }
            Event::AutoStart => batch.auto_start = true,
            Event::Closed => return true,
            Event::Ping(reply) => {
                let statistics = &self.source.statistics;
                if statistics.asking(|| self.connection.lib_version()).is_ok() {
                    // Whoever asked may have gone.
                    let _ = reply.send(());
                }
            }
        }
        false
    }

    /// Waits for an event, and does meanwhile what is due. `None`: there will be none.
    fn next(&mut self, receiver: &Receiver<Event>) -> Option<Event> {
        loop {
            let assembly = &self.source.assembly;
            let ask = self
                .source
                .block_statistics
                .filter(|_| !assembly.domains_with_disks().is_empty())
                .and_then(|pause| self.asked.checked_add(pause));
            let settle = assembly.due();
            let watch = (!self.copying.is_empty()).then(|| self.asked_copying + MIGRATION_PAUSE);
            // With nothing to count and nothing to wait for, nothing but an event wakes this thread.
            let Some(due) = ask.into_iter().chain(settle).chain(watch).min() else {
                return receiver.recv().ok();
            };
            let now = Instant::now();
            // First what is due: events may come without a pause.
            if due > now {
                match receiver.recv_deadline(due) {
                    Err(RecvTimeoutError::Timeout) => {}
                    event => return event.ok(),
                }
            } else {
                if settle.is_some_and(|settle| settle <= now) {
                    // What has come and waits may be what is missing.
                    if let Ok(event) = receiver.try_recv() {
                        return Some(event);
                    }
                    assembly.settle();
                }
                if watch.is_some_and(|watch| watch <= now) {
                    self.copying.retain(|uuid| assembly.is_migrating(*uuid) != Some(false));
                    self.ask_copying();
                }
                if ask.is_some_and(|ask| ask <= now) {
                    self.ask();
                }
            }
        }
    }

    fn ask_copying(&mut self) {
        self.asked_copying = Instant::now();
        for &uuid in &self.copying {
            self.blocks.ask(uuid, Question::MIGRATION);
        }
    }

    fn ask(&mut self) {
        self.asked = Instant::now();
        self.rounds = self.rounds.wrapping_add(1);
        let sizes = self.rounds.is_multiple_of(SIZES_EVERY);
        for (uuid, io) in self.source.assembly.domains_with_disks() {
            if sizes || io {
                self.blocks.ask(uuid, Question { sizes, io, migration: false });
            }
        }
    }

    /// Looks at the domains that have changed.
    fn take(&mut self, Batch { changed, mut happened, copying, auto_start }: Batch) {
        self.source.look_out();
        if auto_start {
            self.take_auto_start();
        }
        if changed.is_empty() {
            return;
        }
        self.source.assembly.under_way(&changed);
        let statistics = &self.source.statistics;
        let mut domains: BTreeMap<_, _> = changed
            .iter()
            .filter_map(|&uuid| Some((uuid, statistics.asking(|| query(self.connection, uuid))?)))
            .collect();
        let mut states = Vec::new();
        for uuid in changed {
            // libvirt may not have said how it is now.
            let now = domains.get_mut(&uuid).and_then(Option::as_mut);
            let events = happened.remove(&uuid).unwrap_or_default();
            let went = self.transitions.apply(uuid, &events, now);
            states.extend(went.into_iter().map(|state| (uuid, state)));
        }
        let there: Vec<_> =
            domains.iter().filter_map(|(uuid, domain)| domain.is_some().then_some(*uuid)).collect();
        self.source.assembly.update_domains(domains, &states);
        let question = Question::of_change(self.source.block_statistics.is_some());
        for uuid in there {
            self.blocks.ask(uuid, question);
        }
        if !copying.is_empty() {
            for &uuid in &copying {
                self.source.assembly.forget_migration(uuid);
            }
            self.copying.extend(copying);
            self.ask_copying();
        }
    }

    /// One question for all domains, for which no domain is asked.
    fn take_auto_start(&self) {
        const LIST: u32 = sys::VIR_CONNECT_LIST_DOMAINS_AUTOSTART;
        let listed = self.source.statistics.asking(|| self.connection.list_all_domains(LIST));
        let uuids: Result<BTreeSet<_>, _> = listed
            .and_then(|handles| handles.iter().map(|handle| Ok(handle.uuid()?.into())).collect());
        match uuids {
            Ok(uuids) => self.source.assembly.set_auto_start(&uuids),
            Err(error) => debug!("which domains start with the host: {}", error.message()),
        }
    }
}

impl Source {
    /// Follows the files of libvirt, once they have a place: it makes that when it first defines a domain.
    pub(super) fn look_out(&self) {
        if self.looks_out.get() {
            return;
        }
        let Some(files) = ConfigWatch::of(&self.uri) else { return };
        let (statistics, assembly) = (Arc::clone(&self.statistics), Arc::clone(&self.assembly));
        let follow = move || {
            while let Ok(changes) = files.wait() {
                // Without a connection, all is asked for with the next one.
                let Some(source) = statistics.source() else { continue };
                for change in changes {
                    let event = match change {
                        ConfigChange::AutoStart => Some(Event::AutoStart),
                        ConfigChange::Domain(name) => {
                            assembly.domain_named(&name).map(Event::Changed)
                        }
                    };
                    if let Some(event) = event {
                        let _ = source.send(event);
                    }
                }
            }
        };
        match thread::Builder::new().name("libvirt files".to_owned()).spawn(follow) {
            Ok(_) => self.looks_out.set(true),
            Err(error) => debug!("the files of libvirt are not followed: {error}"),
        }
    }
}

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
    Worker,
    config_watch::{ConfigChange, ConfigWatch},
    disk_queries::Question,
    domain::{query, query_state},
    domain_xml::DomainXmls,
    events::Event,
    pace::Pace,
    transitions::{Transitions, are_pauses},
};
use crate::inventory::{DomainFact, VmUuid};

/// libvirt sends no event for a cancelled migration: poll interval of the job.
const MIGRATION_PAUSE: Duration = Duration::from_secs(1);

/// Disk sizes are refreshed with every n-th poll of disk I/O: they cost one more call for each disk.
const SIZES_EVERY: u32 = 6;

/// The events of one connection.
pub(super) struct EventLoop<'a> {
    worker: &'a Worker,
    connection: &'a Connect,
    transitions: Transitions,
    pace: Pace,
    /// When QEMU's counts were polled last.
    polled: Instant,
    /// How often they were.
    rounds: u32,
    /// Domains whose memory is copied, and when it was asked last whether that is a migration.
    copying: BTreeSet<VmUuid>,
    asked_copying: Instant,
}

/// Events that are handled together.
#[derive(Debug, Default)]
struct Batch {
    changed: BTreeSet<VmUuid>,
    events: BTreeMap<VmUuid, Vec<(c_int, c_int)>>,
    copying: BTreeSet<VmUuid>,
    auto_start: bool,
    /// Number of the last life-cycle event.
    through: u64,
}

impl Batch {
    /// A domain has changed.
    fn change(&mut self, uuid: VmUuid, xmls: &DomainXmls) {
        xmls.note_change(uuid);
        self.changed.insert(uuid);
    }
}

impl<'a> EventLoop<'a> {
    /// `undescribed` = domains that libvirt could not describe when all were listed.
    pub(super) fn new(
        worker: &'a Worker,
        connection: &'a Connect,
        undescribed: BTreeSet<VmUuid>,
    ) -> Self {
        let mut pace = Pace::default();
        for uuid in undescribed {
            pace.retry(uuid, Instant::now());
        }
        Self {
            worker,
            connection,
            transitions: Transitions::default(),
            pace,
            polled: Instant::now(),
            rounds: 0,
            copying: BTreeSet::new(),
            asked_copying: Instant::now(),
        }
    }

    /// Follows the events until the connection is lost. `is_first`: what happened before is no change.
    pub(super) fn run(&mut self, receiver: &Receiver<Event>, is_first: bool) {
        if is_first {
            let mut batch = Batch::default();
            let is_closed = receiver.try_iter().any(|event| self.gather(event, &mut batch));
            batch.events.clear();
            self.take(batch);
            if is_closed {
                return;
            }
        }
        while let Some(first) = self.next(receiver) {
            // What has come meanwhile is handled together: each domain is described once.
            let mut batch = Batch::default();
            let mut events = std::iter::once(first).chain(receiver.try_iter());
            let is_closed = events.any(|event| self.gather(event, &mut batch));
            self.take(batch);
            if is_closed {
                return;
            }
        }
    }

    /// Adds an event to the batch. Whether the connection is lost.
    fn gather(&self, event: Event, batch: &mut Batch) -> bool {
        match event {
            Event::Changed(uuid) => batch.change(uuid, &self.worker.xmls),
            Event::Answered(uuid) => drop(batch.changed.insert(uuid)),
            Event::LifeCycle(uuid, event, detail, number) => {
                debug!(uuid = %uuid, event, detail, "life-cycle event");
                batch.through = number;
                batch.change(uuid, &self.worker.xmls);
                batch.events.entry(uuid).or_default().push((event, detail));
            }
            Event::Copying(uuid) => {
                batch.change(uuid, &self.worker.xmls);
                batch.copying.insert(uuid);
            }
            Event::AutoStart => batch.auto_start = true,
            Event::Polled => {}
            Event::Closed => return true,
            Event::Ping(reply) => {
                if self.worker.shared.call(|| self.connection.lib_version()).is_ok() {
                    // The receiver may have given up.
                    let _ = reply.send(());
                }
            }
        }
        false
    }

    /// Waits for an event, and does meanwhile what is due; `None` = there will be none.
    fn next(&mut self, receiver: &Receiver<Event>) -> Option<Event> {
        loop {
            let shared = &self.worker.shared;
            let poll = shared.block_statistics.filter(|_| shared.polls());
            let poll = poll.and_then(|pause| self.polled.checked_add(pause));
            let watch = (!self.copying.is_empty()).then(|| self.asked_copying + MIGRATION_PAUSE);
            // With nothing to poll and nothing to wait for, only an event wakes this thread.
            let describe = self.pace.poll_timeout();
            let Some(due) = poll.into_iter().chain(watch).chain(describe).min() else {
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
                if watch.is_some_and(|watch| watch <= now) {
                    self.copying.retain(|uuid| shared.may_be_migrating(*uuid));
                    self.ask_copying();
                }
                if poll.is_some_and(|poll| poll <= now) {
                    self.poll();
                }
                let changed = self.pace.due(now);
                self.take(Batch { changed, ..Batch::default() });
            }
        }
    }

    fn ask_copying(&mut self) {
        self.asked_copying = Instant::now();
        for &uuid in &self.copying {
            self.worker.disk_queries.ask(uuid, Question::MIGRATION);
        }
    }

    fn poll(&mut self) {
        self.polled = Instant::now();
        self.rounds = self.rounds.wrapping_add(1);
        let sizes = self.rounds.is_multiple_of(SIZES_EVERY);
        for (uuid, io) in self.worker.shared.polled() {
            if sizes || io {
                self.worker.disk_queries.ask(uuid, Question { sizes, io, migration: false });
            }
        }
    }

    /// Describes the domains that have changed.
    fn take(&mut self, batch: Batch) {
        let Batch { mut changed, mut events, copying, auto_start, through } = batch;
        let now = Instant::now();
        self.worker.watch_files();
        if auto_start {
            self.take_auto_start();
        }
        changed.retain(|uuid| {
            let has_changed_state = events.contains_key(uuid) || copying.contains(uuid);
            has_changed_state || self.pace.admits(*uuid, now)
        });
        if changed.is_empty() {
            return;
        }
        self.worker.shared.report(DomainFact::EventsUnderWay(changed.clone(), through));
        for (&uuid, events) in &mut events {
            if self.take_state(uuid, events)
                && !copying.contains(&uuid)
                && !self.pace.admits(uuid, now)
            {
                changed.remove(&uuid);
            }
        }
        if changed.is_empty() {
            return;
        }
        let shared = &self.worker.shared;
        let mut domains: BTreeMap<_, _> = changed
            .iter()
            .filter_map(|&uuid| {
                let (files, xmls) = (&shared.process_files, &self.worker.xmls);
                Some((uuid, shared.call(|| query(self.connection, files, xmls, uuid))?))
            })
            .collect();
        let mut changes = Vec::new();
        for uuid in changed {
            match domains.get(&uuid) {
                Some(None) => self.pace.forget(uuid),
                Some(Some(_)) => {
                    self.pace.note(uuid, now);
                    self.pace.succeeded(uuid);
                }
                None => {
                    self.pace.note(uuid, now);
                    self.pace.retry(uuid, now);
                }
            }
            // A domain that libvirt could not describe is missing.
            let now = domains.get_mut(&uuid).and_then(Option::as_mut);
            let now = now.map(|domain| &mut domain.state);
            let events = events.remove(&uuid).unwrap_or_default();
            let went = self.transitions.apply(uuid, &events, now);
            changes.extend(went.into_iter().map(|change| (uuid, change)));
        }
        shared.update(&domains);
        shared.report(DomainFact::Changed { domains, events: changes });
        if !copying.is_empty() {
            for &uuid in &copying {
                shared.forget_migration(uuid);
            }
            self.copying.extend(copying);
            self.ask_copying();
        }
    }

    /// Reports the state of a domain that was paused or goes on before the domain is described: the state takes two calls
    /// to libvirt, the description five. Whether it was reported; the events are taken then.
    fn take_state(&mut self, uuid: VmUuid, events: &mut Vec<(c_int, c_int)>) -> bool {
        let shared = &self.worker.shared;
        if !are_pauses(events) || !shared.has(uuid) {
            return false;
        }
        let Some(mut found) = shared.call(|| query_state(self.connection, uuid)) else {
            return false;
        };
        let happened = self.transitions.apply(uuid, events, Some(&mut found));
        events.clear();
        shared.report(DomainFact::State(uuid, found, happened));
        true
    }

    /// One question for all domains, for which no domain is asked.
    fn take_auto_start(&self) {
        const LIST: u32 = sys::VIR_CONNECT_LIST_DOMAINS_AUTOSTART;
        let listed = self.worker.shared.call(|| self.connection.list_all_domains(LIST));
        let uuids: Result<BTreeSet<_>, _> = listed
            .and_then(|handles| handles.iter().map(|handle| Ok(handle.uuid()?.into())).collect());
        match uuids {
            Ok(uuids) => self.worker.shared.report(DomainFact::AutoStart(uuids)),
            Err(error) => debug!("which domains start with the host: {}", error.message()),
        }
    }
}

impl Worker {
    /// Watches the files of libvirt, once they exist: libvirt makes their directory when it first defines a domain.
    pub(super) fn watch_files(&self) {
        if self.watches_files.get() {
            return;
        }
        let state = self.shared.process_files.dir();
        let Some(mut files) = ConfigWatch::of(&self.shared.uri, state) else { return };
        let shared = Arc::clone(&self.shared);
        let follow = move || {
            while let Ok(changes) = files.wait() {
                // Without a connection, all is read with the next one.
                let Some(events) = shared.events() else { continue };
                for change in changes {
                    let changed: Vec<Event> = match change {
                        ConfigChange::All => {
                            let domains = shared.uuids().into_iter().map(Event::Changed);
                            domains.chain([Event::AutoStart]).collect()
                        }
                        ConfigChange::AutoStart => vec![Event::AutoStart],
                        ConfigChange::Domain(name) => {
                            shared.domain_named(&name).map(Event::Changed).into_iter().collect()
                        }
                        // QEMU 11 reports the first pass over the memory when it ends, which may be minutes later.
                        ConfigChange::Status(name)
                            if shared.process_files.is_migrating_away(&name) =>
                        {
                            shared.domain_named(&name).map(Event::Copying).into_iter().collect()
                        }
                        ConfigChange::Status(_) => Vec::new(),
                    };
                    for event in changed {
                        let _ = events.send(event);
                    }
                }
            }
        };
        match thread::Builder::new().name("libvirt files".to_owned()).spawn(follow) {
            Ok(_) => self.watches_files.set(true),
            Err(error) => debug!("the files of libvirt are not watched: {error}"),
        }
    }
}

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
use uuid::Uuid;
use virt::{connect::Connect, sys};

use super::{
    Source,
    autostart::Links,
    blocks::{Blocks, Question},
    domain::look,
    events::Event,
    transitions::Transitions,
};

/// What is found of a domain may be ahead of events that are under way. So long after the last one, there are none.
const LATE: Duration = Duration::from_millis(500);

/// The events of one connection.
pub(super) struct Following<'a> {
    source: &'a Source,
    connection: &'a Connect,
    blocks: &'a Blocks,
    transitions: Transitions,
    /// When QEMU's counts were asked for last.
    asked: Instant,
    /// Until when events are expected that lead to what was found.
    expected: BTreeMap<[u8; 16], Instant>,
}

/// Events that are answered together.
#[derive(Debug, Default)]
struct Batch {
    changed: BTreeSet<[u8; 16]>,
    happened: BTreeMap<[u8; 16], Vec<(c_int, c_int)>>,
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
            expected: BTreeMap::new(),
        }
    }

    /// Follows the events until the connection is lost.
    pub(super) fn run(&mut self, receiver: &Receiver<Event>) {
        while let Some(first) = self.next(receiver) {
            // What has come meanwhile is answered together, each domain once.
            let mut batch = Batch::default();
            for event in std::iter::once(first).chain(receiver.try_iter()) {
                match event {
                    Event::Changed(uuid) => {
                        batch.changed.insert(uuid);
                    }
                    Event::LifeCycle(uuid, event, detail) => {
                        debug!(uuid = %Uuid::from_bytes(uuid), event, detail, "life-cycle event");
                        batch.changed.insert(uuid);
                        batch.happened.entry(uuid).or_default().push((event, detail));
                    }
                    Event::AutoStart => batch.auto_start = true,
                    Event::Closed => return,
                    Event::Ping(reply) => {
                        let statistics = &self.source.statistics;
                        if statistics.asking(|| self.connection.lib_version()).is_ok() {
                            // Whoever asked may have gone.
                            let _ = reply.send(());
                        }
                    }
                }
            }
            self.source.look_out();
            if batch.auto_start {
                self.take_auto_start();
            }
            if !batch.changed.is_empty() {
                self.take(batch);
            }
        }
    }

    /// Waits for an event, and does meanwhile what is due. `None`: there will be none.
    fn next(&mut self, receiver: &Receiver<Event>) -> Option<Event> {
        loop {
            let ask = self
                .source
                .block_statistics
                .filter(|_| !self.source.assembly.domains_with_io().is_empty())
                .and_then(|pause| self.asked.checked_add(pause));
            let settle = self.expected.values().min().copied();
            // With nothing to count and nothing to wait for, nothing but an event wakes this thread.
            let Some(due) = ask.into_iter().chain(settle).min() else {
                return receiver.recv().ok();
            };
            match receiver.recv_deadline(due) {
                Err(RecvTimeoutError::Timeout) => self.do_what_is_due(ask),
                event => return event.ok(),
            }
        }
    }

    fn do_what_is_due(&mut self, ask: Option<Instant>) {
        let now = Instant::now();
        if ask.is_some_and(|ask| ask <= now) {
            self.asked = now;
            for uuid in self.source.assembly.domains_with_io() {
                self.blocks.ask(uuid, Question::IO);
            }
        }
        let settled: Vec<_> = self.expected.extract_if(.., |_, until| *until <= now).collect();
        if !settled.is_empty() {
            let domains: Vec<_> = settled.into_iter().map(|(uuid, _)| uuid).collect();
            self.source.assembly.settle(&domains);
        }
    }

    /// Looks at the domains that have changed.
    fn take(&mut self, Batch { changed, mut happened, .. }: Batch) {
        let statistics = &self.source.statistics;
        let mut domains: BTreeMap<_, _> = changed
            .iter()
            .filter_map(|&uuid| Some((uuid, statistics.asking(|| look(self.connection, uuid))?)))
            .collect();
        let mut states = Vec::new();
        for uuid in changed {
            // libvirt may not have said how it is now.
            let now = domains.get_mut(&uuid).and_then(Option::as_mut);
            let events = happened.remove(&uuid).unwrap_or_default();
            let went = self.transitions.through(uuid, &events, now);
            states.extend(went.into_iter().map(|state| (uuid, state)));
        }
        let there: Vec<_> =
            domains.iter().filter_map(|(uuid, domain)| domain.is_some().then_some(*uuid)).collect();
        for uuid in domains.keys() {
            self.expected.remove(uuid);
        }
        let late = Instant::now() + LATE;
        for uuid in self.source.assembly.update_domains(domains, &states) {
            self.expected.insert(uuid, late);
        }
        let question = Question::of_change(self.source.block_statistics.is_some());
        for uuid in there {
            self.blocks.ask(uuid, question);
        }
    }

    /// One question for all domains, for which no domain is asked.
    fn take_auto_start(&self) {
        const LIST: u32 = sys::VIR_CONNECT_LIST_DOMAINS_AUTOSTART;
        let listed = self.source.statistics.asking(|| self.connection.list_all_domains(LIST));
        let uuids: Result<BTreeSet<_>, _> = listed.and_then(|handles| {
            handles.iter().map(|handle| Ok(handle.uuid()?.into_bytes())).collect()
        });
        match uuids {
            Ok(uuids) => self.source.assembly.set_auto_start(&uuids),
            Err(error) => debug!("which domains start with the host: {}", error.message()),
        }
    }
}

impl Source {
    /// Follows the links of domains that start with the host, once they have a place: libvirt makes it when it
    /// first defines a domain.
    pub(super) fn look_out(&self) {
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
}

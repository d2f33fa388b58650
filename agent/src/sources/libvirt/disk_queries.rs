//! The sizes of disks, and what QEMU counts of their I/O. libvirt asks the QEMU of a running domain, and waits for
//! one that hangs; so each such question has a thread and a connection of its own to wait on.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use tracing::{debug, warn};
use virt::{connect::Connect, domain::Domain as Handle, error::Error};

use super::{block_statistics, events::is_migrating};
use crate::inventory::{Assembly, DiskSize, VmUuid};

/// So many domains may hang before the disks of others have to wait.
const THREADS: usize = 8;

/// Of a host with many domains the sizes of so many are shown together.
const TOGETHER: usize = 64;

/// What is asked of the disks of a domain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Question {
    pub(super) sizes: bool,
    pub(super) io: bool,
    /// Not of the disks, but as little known without QEMU: whether the domain is on its way to another host.
    pub(super) migration: bool,
}

impl Question {
    /// What is asked when a domain is new or different.
    pub(super) const fn of_change(io: bool) -> Self {
        Self { sizes: true, io, migration: false }
    }

    /// What is asked while its memory is copied.
    pub(super) const MIGRATION: Self = Self { sizes: false, io: false, migration: true };

    const fn merge(&mut self, other: Self) {
        self.sizes |= other.sizes;
        self.io |= other.io;
        self.migration |= other.migration;
    }
}

/// Asks for the disks of domains in the background.
pub(super) struct Blocks {
    shared: Arc<Shared>,
}

struct Shared {
    uri: String,
    assembly: Arc<Assembly>,
    load: Mutex<Load>,
    /// Told when there is something in the queue.
    more: Condvar,
}

#[derive(Default)]
struct Load {
    threads: usize,
    idle: usize,
    /// Domains that are to be asked, once each.
    queue: VecDeque<VmUuid>,
    /// What of them, and of those that are being asked, is wanted: a storm of events is one question.
    wanted: HashMap<VmUuid, Question>,
    /// Being answered: a domain that hangs takes one thread.
    busy: HashSet<VmUuid>,
}

impl Blocks {
    pub(super) fn new(uri: String, assembly: Arc<Assembly>) -> Self {
        let (load, more) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { uri, assembly, load, more }) }
    }

    /// Asks this of the domain's disks, soon.
    pub(super) fn ask(&self, uuid: VmUuid, question: Question) {
        let mut load = self.shared.load();
        let is_new = !load.wanted.contains_key(&uuid);
        load.wanted.entry(uuid).or_default().merge(question);
        // Whoever is with the domain sees what is wanted.
        if is_new && !load.busy.contains(&uuid) {
            load.queue.push_back(uuid);
        }
        // Each idle thread takes one.
        if load.queue.len() > load.idle && load.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let started =
                thread::Builder::new().name("libvirt disks".to_owned()).spawn(move || shared.run());
            match started {
                Ok(_) => load.threads += 1,
                Err(error) => warn!("No thread for the disks of domains: {error}"),
            }
        }
        drop(load);
        self.shared.more.notify_one();
    }
}

impl Shared {
    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut connection = None;
        let mut answered = 0_usize;
        loop {
            let uuid = self.take();
            answered += 1;
            while let Some(question) = self.next(uuid) {
                self.answer(&mut connection, uuid, question);
            }
            // A publication costs as much as there are domains.
            if answered.is_multiple_of(TOGETHER) {
                self.assembly.publish_disks();
            }
        }
    }

    /// The next domain of the queue, as soon as there is one.
    fn take(&self) -> VmUuid {
        if self.load().queue.is_empty() {
            // Before it waits: what was noted is not kept from readers by another thread that hangs.
            self.assembly.publish_disks();
        }
        let mut load = self.load();
        loop {
            if let Some(uuid) = load.queue.pop_front() {
                // From here on it is asked for by this thread.
                load.busy.insert(uuid);
                return uuid;
            }
            load.idle += 1;
            load = self.more.wait(load).unwrap_or_else(PoisonError::into_inner);
            load.idle -= 1;
        }
    }

    /// What is wanted of the domain; with `None` somebody else may come to it.
    fn next(&self, uuid: VmUuid) -> Option<Question> {
        let mut load = self.load();
        let question = load.wanted.remove(&uuid);
        if question.is_none() {
            load.busy.remove(&uuid);
        }
        question
    }

    fn answer(&self, connection: &mut Option<Connect>, uuid: VmUuid, mut question: Question) {
        let is_old = connection.is_some();
        let mut answer = self.look(connection, uuid, &mut question);
        if answer.is_err() {
            *connection = None;
            if is_old {
                // The daemon may have been started anew since.
                answer = self.look(connection, uuid, &mut question);
            }
        }
        if let Err(error) = answer {
            debug!(uuid = %uuid, "its disks are not known: {}", error.message());
        }
    }

    /// Answers, and notes what is answered.
    fn look(
        &self,
        connection: &mut Option<Connect>,
        uuid: VmUuid,
        question: &mut Question,
    ) -> Result<(), Error> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connect::open_read_only(Some(&self.uri))?),
        };
        let domain = connection.lookup_domain_by_uuid(uuid.to_uuid())?;
        if mem::take(&mut question.migration) {
            let is_migrating = is_migrating(&domain);
            debug!(uuid = %uuid, is_migrating, "its memory is copied");
            self.assembly.set_migrating(uuid, is_migrating);
        }
        if mem::take(&mut question.sizes) {
            let targets = self.assembly.sized_disks(uuid);
            self.assembly.note_sizes(uuid, &targets, sizes(&domain, &targets));
        }
        if question.io {
            self.assembly.note_io(uuid, &block_statistics::query(&domain)?);
        }
        Ok(())
    }
}

fn sizes(domain: &Handle, targets: &[String]) -> Vec<(String, DiskSize)> {
    let mut sizes = Vec::with_capacity(targets.len());
    for target in targets {
        match domain.block_info(target, 0) {
            Ok(info) => {
                let size =
                    DiskSize { defined: Some(info.capacity), allocated: Some(info.allocation) };
                sizes.push((target.clone(), size));
            }
            Err(error) => debug!(disk = target, "no size: {}", error.message()),
        }
    }
    sizes
}

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

use super::{block_statistics, connection_state::ConnectionState, events::is_migrating};
use crate::{
    counters::{DiskKey, DiskSize},
    inventory::{DiskQuery, VmUuid},
};

/// Worker threads: up to this many domains whose QEMU hangs delay no other.
const THREADS: usize = 8;

/// What is asked of the disks of a domain.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Question {
    pub(super) sizes: bool,
    pub(super) io: bool,
    /// Not about the disks, but only QEMU knows it, too: whether the domain is migrated to another host.
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

/// Asks about the disks of domains in the background.
#[derive(Debug)]
pub(super) struct DiskQueries {
    workers: Arc<Workers>,
}

#[derive(Debug)]
struct Workers {
    shared: Arc<ConnectionState>,
    queue: Mutex<Queue>,
    /// Notified when there is something in the queue.
    more: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    threads: usize,
    idle: usize,
    /// Domains to be asked about, once each.
    domains: VecDeque<VmUuid>,
    /// What is to be asked about them, and about those that are being asked about: a storm of events is one question.
    wanted: HashMap<VmUuid, Question>,
    /// Being asked about: a domain that hangs occupies one thread.
    busy: HashSet<VmUuid>,
}

impl DiskQueries {
    pub(super) fn new(shared: Arc<ConnectionState>) -> Self {
        let (queue, more) = (Mutex::default(), Condvar::new());
        Self { workers: Arc::new(Workers { shared, queue, more }) }
    }

    /// Asks this about the domain, soon. Never waits.
    pub(super) fn ask(&self, uuid: VmUuid, question: Question) {
        let mut queue = self.workers.queue();
        let is_new = !queue.wanted.contains_key(&uuid);
        queue.wanted.entry(uuid).or_default().merge(question);
        // The thread that is busy with the domain sees what is wanted.
        if is_new && !queue.busy.contains(&uuid) {
            queue.domains.push_back(uuid);
        }
        // Each idle thread takes one.
        if queue.domains.len() > queue.idle && queue.threads < THREADS {
            let workers = Arc::clone(&self.workers);
            let started = thread::Builder::new()
                .name("libvirt disks".to_owned())
                .spawn(move || workers.run());
            match started {
                Ok(_) => queue.threads += 1,
                Err(error) => warn!("No thread for the disks of domains: {error}"),
            }
        }
        drop(queue);
        self.workers.more.notify_one();
    }
}

impl Workers {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let _end = self.shared.facts().end_guard("libvirt disks");
        let mut connection = None;
        loop {
            let uuid = self.take();
            while let Some(question) = self.next(uuid) {
                self.answer(&mut connection, uuid, question);
            }
        }
    }

    /// The next domain of the queue, as soon as there is one.
    fn take(&self) -> VmUuid {
        let mut queue = self.queue();
        loop {
            if let Some(uuid) = queue.domains.pop_front() {
                queue.busy.insert(uuid);
                return uuid;
            }
            queue.idle += 1;
            queue = self.more.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
        }
    }

    /// What is to be asked about the domain; after `None` another thread may take it.
    fn next(&self, uuid: VmUuid) -> Option<Question> {
        let mut queue = self.queue();
        let question = queue.wanted.remove(&uuid);
        if question.is_none() {
            queue.busy.remove(&uuid);
        }
        question
    }

    fn answer(&self, connection: &mut Option<Connect>, uuid: VmUuid, mut question: Question) {
        let is_old = connection.is_some();
        let mut answer = self.ask(connection, uuid, &mut question);
        if answer.is_err() {
            *connection = None;
            if is_old {
                // The daemon may have been restarted since.
                answer = self.ask(connection, uuid, &mut question);
            }
        }
        if let Err(error) = answer {
            debug!(%uuid, "nothing is known about its disks: {}", error.message());
        }
    }

    /// Asks, and stores the answers.
    fn ask(
        &self,
        connection: &mut Option<Connect>,
        uuid: VmUuid,
        question: &mut Question,
    ) -> Result<(), Error> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connect::open_read_only(Some(&self.shared.uri))?),
        };
        let domain = connection.lookup_domain_by_uuid(uuid.to_uuid())?;
        if mem::take(&mut question.migration) {
            let is_migrating = is_migrating(&domain);
            debug!(%uuid, is_migrating, "its memory is copied");
            self.shared.set_migrating(uuid, is_migrating);
        }
        let Some(query) = self.shared.query(uuid) else { return Ok(()) };
        if mem::take(&mut question.sizes) {
            self.take_sizes(&domain, &query);
        }
        if question.io && query.is_active {
            for (target, io) in block_statistics::query(&domain)? {
                if let Some(disk) = query.disks.iter().find(|disk| disk.target == target) {
                    let disk = DiskKey { vm: query.vm.0, storage: disk.storage };
                    self.shared.slow.observe_disk_io(disk, query.run, io);
                }
            }
        }
        Ok(())
    }

    fn take_sizes(&self, domain: &Handle, query: &DiskQuery) {
        for disk in query.disks.iter().filter(|disk| disk.has_size) {
            match domain.block_info(&disk.target, 0) {
                Ok(info) => {
                    let size =
                        DiskSize { defined: Some(info.capacity), allocated: Some(info.allocation) };
                    let disk = DiskKey { vm: query.vm.0, storage: disk.storage };
                    self.shared.slow.set_disk_size(disk, Some(size));
                }
                Err(error) => debug!(disk = disk.target, "no size: {}", error.message()),
            }
        }
    }
}

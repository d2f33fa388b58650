//! The sizes of disks. libvirt asks the QEMU of a running domain, and waits for one that hangs; so each such
//! question has a thread and a connection of its own to wait on.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use tracing::{debug, warn};
use uuid::Uuid;
use virt::{connect::Connect, error::Error};

use super::{
    super::{Assembly, DiskSize},
    Receiver, Sender, unbounded,
};

/// So many domains may hang before the sizes of others have to wait.
const THREADS: usize = 8;

/// Of a host with many domains the sizes of so many are shown together.
const TOGETHER: usize = 64;

/// Asks for the sizes of a domain's disks in the background.
pub(super) struct Sizes {
    shared: Arc<Shared>,
    sender: Sender<[u8; 16]>,
}

struct Shared {
    uri: String,
    assembly: Arc<Assembly>,
    receiver: Receiver<[u8; 16]>,
    load: Mutex<Load>,
}

#[derive(Default)]
struct Load {
    threads: usize,
    idle: usize,
    /// Asked for and not answered: a storm of events is one question, and a domain that hangs takes one thread.
    asked: HashSet<[u8; 16]>,
    /// Asked for again meanwhile.
    again: HashSet<[u8; 16]>,
}

impl Sizes {
    pub(super) fn new(uri: String, assembly: Arc<Assembly>) -> Self {
        let (sender, receiver) = unbounded();
        let shared = Shared { uri, assembly, receiver, load: Mutex::default() };
        Self { shared: Arc::new(shared), sender }
    }

    /// Asks for the sizes of this domain's disks, soon.
    pub(super) fn ask(&self, uuid: [u8; 16]) {
        let mut load = self.shared.load();
        if !load.asked.insert(uuid) {
            load.again.insert(uuid);
            return;
        }
        if load.idle == 0 && load.threads < THREADS {
            let shared = Arc::clone(&self.shared);
            let started =
                thread::Builder::new().name("libvirt sizes".to_owned()).spawn(move || shared.run());
            match started {
                Ok(_) => load.threads += 1,
                Err(error) => warn!("No thread for the sizes of disks: {error}"),
            }
        }
        // There is a receiver as long as `self`.
        let _ = self.sender.send(uuid);
    }
}

impl Shared {
    fn load(&self) -> std::sync::MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut connection = None;
        let mut answered = 0_usize;
        loop {
            self.load().idle += 1;
            let Ok(uuid) = self.receiver.recv() else { return };
            self.load().idle -= 1;
            answered += 1;
            loop {
                self.answer(&mut connection, uuid);
                let mut load = self.load();
                if !load.again.remove(&uuid) {
                    load.asked.remove(&uuid);
                    break;
                }
            }
            // A publication costs as much as there are domains.
            if self.receiver.is_empty() || answered.is_multiple_of(TOGETHER) {
                self.assembly.publish_sizes();
            }
        }
    }

    fn answer(&self, connection: &mut Option<Connect>, uuid: [u8; 16]) {
        let is_old = connection.is_some();
        let mut sizes = self.look(connection, uuid);
        if sizes.is_err() {
            *connection = None;
            if is_old {
                // The daemon may have been started anew since.
                sizes = self.look(connection, uuid);
            }
        }
        match sizes {
            Ok(sizes) => self.assembly.note_sizes(uuid, sizes),
            Err(error) => {
                debug!(uuid = %Uuid::from_bytes(uuid), "no sizes: {}", error.message());
            }
        }
    }

    fn look(
        &self,
        connection: &mut Option<Connect>,
        uuid: [u8; 16],
    ) -> Result<Vec<(String, DiskSize)>, Error> {
        let connection = match connection {
            Some(connection) => connection,
            None => connection.insert(Connect::open_read_only(Some(&self.uri))?),
        };
        let domain = connection.lookup_domain_by_uuid(Uuid::from_bytes(uuid))?;
        let mut sizes = Vec::new();
        for target in self.assembly.sized_disks(uuid) {
            match domain.block_info(&target, 0) {
                Ok(info) => {
                    let size =
                        DiskSize { defined: Some(info.capacity), allocated: Some(info.allocation) };
                    sizes.push((target, size));
                }
                Err(error) => debug!(disk = target, "no size: {}", error.message()),
            }
        }
        Ok(sizes)
    }
}

//! The XML of a domain.
//!
//! The QEMU driver of libvirt 11 and newer, other than that of 9.0, waits until no job of the domain runs before it answers, at
//! most 30 s. A QEMU or a storage that hangs may hold a job for ever. So XML is read on threads and connections of its own, and
//! while that takes long, what the driver has written into the domain's status file is used.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::debug;
use virt::{connect::Connect, domain::Domain as Handle, error::Error};

use super::{
    KEEP_ALIVE, address::Address, connection_state::ConnectionState, domain::DescribeError,
    events::Event, late_reads::LateReads,
};
use crate::inventory::VmUuid;

/// Reads the XML of a connection's domains.
pub(super) struct DomainXmls {
    shared: Arc<ConnectionState>,
    /// `None` = the driver answers at once.
    reads: Option<LateReads<Result<String, Error>>>,
    connections: Arc<Connections>,
}

/// Connections for reads, each used by one thread at a time.
struct Connections {
    uri: String,
    idle: Mutex<Vec<Connect>>,
}

impl DomainXmls {
    pub(super) fn new(shared: &Arc<ConnectionState>) -> Self {
        let come = Arc::clone(shared);
        let came = move |uuid| {
            // Without a connection, all is read with the next one.
            if let Some(events) = come.events() {
                let _ = events.send(Event::Answered(uuid));
            }
        };
        let waits = Address::of(&shared.uri).driver == "qemu";
        Self {
            shared: Arc::clone(shared),
            reads: waits.then(|| LateReads::new(shared.facts().clone(), came)),
            connections: Arc::new(Connections { uri: shared.uri.clone(), idle: Mutex::default() }),
        }
    }

    /// Forgets everything: the connection is new, perhaps to another daemon.
    ///
    /// # Errors
    ///
    /// When the daemon cannot be connected to.
    pub(super) fn begin(&self) -> Result<(), Error> {
        let Some(reads) = &self.reads else { return Ok(()) };
        reads.forget();
        let connection = self.connections.open()?;
        *self.connections.idle() = vec![connection];
        Ok(())
    }

    /// A domain has changed: an answer that has not been used yet may be older.
    pub(super) fn note_change(&self, uuid: VmUuid) {
        if let Some(reads) = &self.reads {
            reads.note_change(uuid);
        }
    }

    /// The XML of a domain, or its status, in which the XML is an element.
    ///
    /// # Errors
    ///
    /// libvirt's, and when it has not answered yet and the status cannot be read: [`Event::Answered`] comes with the answer.
    pub(super) fn read(
        &self,
        handle: &Handle,
        uuid: VmUuid,
        name: &str,
    ) -> Result<String, DescribeError> {
        let Some(reads) = &self.reads else { return Ok(handle.xml_desc(0)?) };
        let connections = Arc::clone(&self.connections);
        if let Some(answer) = reads.read(uuid, move || connections.read(uuid)) {
            return Ok(answer?);
        }
        let status = self.shared.process_files.status(name, uuid);
        debug!(domain = name, has_status = status.is_some(), "libvirt has not sent its XML yet");
        status.ok_or(DescribeError::Late)
    }
}

impl Connections {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connect>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<Connect, Error> {
        let connection = Connect::open_read_only(Some(&self.uri))?;
        // Without it, the host of a remote daemon that disappears would be waited for.
        if let Err(error) = connection.set_keep_alive(KEEP_ALIVE.0, KEEP_ALIVE.1) {
            debug!(uri = self.uri, "no keep-alive: {}", error.message());
        }
        Ok(connection)
    }

    fn read(&self, uuid: VmUuid) -> Result<String, Error> {
        let idle = self.idle().pop();
        let connection = match idle.filter(|connection| connection.is_alive().unwrap_or(false)) {
            Some(connection) => connection,
            None => self.open()?,
        };
        let xml =
            connection.lookup_domain_by_uuid(uuid.to_uuid()).and_then(|handle| handle.xml_desc(0));
        self.idle().push(connection);
        xml
    }
}

//! Queries a domain's description from libvirt, by calls that wait neither for QEMU's monitor nor for a job of the domain.

use tracing::{debug, warn};
use virt::{
    connect::Connect,
    domain::Domain as Handle,
    error::{Error, ErrorNumber},
};

use super::{domain_xml::DomainXmls, process_files::ProcessFiles, state, xml};
use crate::inventory::{AutoStart, Domain, FoundState, Persistence, VmUuid};

/// Why a domain is not described.
#[derive(Debug, thiserror::Error)]
pub(super) enum DescribeError {
    /// What libvirt answered.
    #[error("{}", .0.message())]
    Libvirt(Error),
    /// libvirt has not answered yet.
    #[error("libvirt waits for a job of the domain")]
    Late,
}

impl From<Error> for DescribeError {
    fn from(error: Error) -> Self {
        Self::Libvirt(error)
    }
}

impl DescribeError {
    /// Whether libvirt has no such domain any more.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Libvirt(error) if is_gone(error))
    }
}

/// The domain as it is now. `None`: libvirt gave no answer; `Some(None)`: the domain is gone.
pub(super) fn query(
    connection: &Connect,
    files: &ProcessFiles,
    xmls: &DomainXmls,
    uuid: VmUuid,
) -> Option<Option<Domain>> {
    let found = connection
        .lookup_domain_by_uuid(uuid.to_uuid())
        .map_err(DescribeError::from)
        .and_then(|handle| describe(&handle, files, xmls));
    match found {
        Ok(domain) => Some(Some(domain)),
        Err(error) if error.is_gone() => Some(None),
        Err(error) => {
            debug!(uuid = %uuid, "not described: {error}");
            None
        }
    }
}

/// The state of a domain that is active. `None`: libvirt gave no answer, or the state alone does not say enough.
pub(super) fn query_state(connection: &Connect, uuid: VmUuid) -> Option<FoundState> {
    let handle = connection.lookup_domain_by_uuid(uuid.to_uuid()).ok()?;
    let (state, reason) = handle.state().ok()?;
    (state::is_active(state) == Some(true)).then(|| state::found(state, reason, false))
}

/// Describes a domain.
///
/// # Errors
///
/// Those of UUID, name, state and XML, and when the domain is gone before all is queried. Any other property that cannot
/// be queried is unknown.
pub(super) fn describe(
    handle: &Handle,
    files: &ProcessFiles,
    xmls: &DomainXmls,
) -> Result<Domain, DescribeError> {
    let uuid: VmUuid = handle.uuid()?.into();
    let name = handle.name()?;
    let (state, reason) = handle.state()?;
    let is_active = state::is_active(state);
    // An active domain may have one, too; what it is restored from is no state of it.
    let has_managed_save = is_active != Some(true) && handle.has_managed_save(0).unwrap_or(false);
    let found = state::found(state, reason, has_managed_save);
    debug!(domain = name, ?state, ?reason, has_managed_save, ?found, "described");
    let parsed = match xml::parse(&xmls.read(handle, uuid, &name)?) {
        Ok(parsed) => parsed,
        Err(error) => {
            warn!(domain = name, "{error}; only its name and state are served");
            xml::DomainXml::default()
        }
    };
    let auto_start = match unless_gone(handle.autostart())? {
        Some(true) => AutoStart::Enabled,
        Some(false) => AutoStart::Disabled,
        None => AutoStart::Unknown,
    };
    let persistence = match unless_gone(handle.is_persistent())? {
        Some(true) => Persistence::Persistent,
        Some(false) => Persistence::Transient,
        None => Persistence::Unknown,
    };
    // After the state: the file of a domain that runs is there.
    let is_active = is_active.or_else(|| handle.is_active().ok()).unwrap_or(true);
    Ok(Domain {
        process: files.process(&name, is_active),
        machine: files.machine(handle.id()),
        user: files.user(),
        uuid,
        name,
        os_type: parsed.os,
        state: found,
        is_active,
        auto_start,
        persistence,
        cpus: parsed.vcpus,
        max_cpus: parsed.max_vcpus,
        vcpu_ids: parsed.vcpu_ids,
        memory: parsed.memory,
        disks: parsed.disks,
        nics: parsed.nics,
    })
}

/// A property of a domain; `None` = it cannot be queried.
///
/// # Errors
///
/// When the domain is gone: then its other properties are not those of its last moment either.
fn unless_gone<T>(property: Result<T, Error>) -> Result<Option<T>, Error> {
    match property {
        Ok(property) => Ok(Some(property)),
        Err(error) if is_gone(&error) => Err(error),
        Err(_) => Ok(None),
    }
}

fn is_gone(error: &Error) -> bool {
    error.code().is_known_and(|code| code == ErrorNumber::NoDomain)
}

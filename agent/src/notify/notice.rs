//! What each notification carries (RFC 7666, vmNotifications).

use crate::{
    agentx::Bindings,
    inventory::Change,
    mib::{
        VM_MIB,
        context::convert::admin_string_cut,
        smi::{Notification, ObjectRef},
        vm_mib::{
            notification::{self, AFFECTED_VMS},
            vm::{NAME, OPER_STATE, PERSISTENT, UUID},
        },
    },
    snmp::{Oid, OidError, OwnedValue},
};

/// snmpTrapOID.0 (RFC 3418), which comes first.
const SNMP_TRAP_OID: Oid = Oid::of(&[1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0]);

/// vmRunning to vmDeleted; `None` where RFC 7666 has none for this change.
pub(super) fn of_one(change: &Change) -> Option<Result<Bindings, OidError>> {
    let uuid = change.uuid.map_or_else(Vec::new, |uuid| uuid.as_bytes().to_vec());
    let values = [
        (NAME, OwnedValue::OctetString(admin_string_cut(&change.name).to_vec())),
        (UUID, OwnedValue::OctetString(uuid)),
        (OPER_STATE, OwnedValue::Integer(change.before as i32)),
        (PERSISTENT, OwnedValue::Integer(change.persistence as i32)),
    ];
    Some(bindings(notification::per_vm(change.event)?, change.index.0, &values))
}

/// vmBulkRunning to vmBulkDeleted.
pub(super) fn of_many(
    notification: &Notification,
    affected: Vec<u8>,
) -> Result<Bindings, OidError> {
    bindings(notification, 0, &[(AFFECTED_VMS, OwnedValue::OctetString(affected))])
}

/// A notification with those of the values that it carries, of the instances with this index.
fn bindings(
    notification: &Notification,
    index: u32,
    values: &[(ObjectRef, OwnedValue)],
) -> Result<Bindings, OidError> {
    let id = notification.id(&VM_MIB)?;
    let mut bindings = vec![(SNMP_TRAP_OID, OwnedValue::ObjectIdentifier(id))];
    for object in notification.objects {
        let value = values.iter().find(|(of, _)| of == object);
        debug_assert!(value.is_some(), "{} has no value of {object:?}", notification.name);
        if let Some((_, value)) = value {
            bindings.push((object.instance(&VM_MIB, &[index])?, value.clone()));
        }
    }
    Ok(bindings)
}

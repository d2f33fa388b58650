//! What each notification carries (RFC 7666, vmNotifications).

use crate::{
    agentx::Notice,
    inventory::{Change, ChangeEvent, OperState},
    mib::VM_MIB,
    snmp::{Oid, OwnedValue},
};

/// snmpTrapOID.0 (RFC 3418), which comes first.
const SNMP_TRAP_OID: [u32; 11] = [1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0];

/// Columns and scalars below vmMIB.
const VM_NAME: [u32; 4] = [1, 4, 1, 2];
const VM_UUID: [u32; 4] = [1, 4, 1, 3];
const VM_OPER_STATE: [u32; 4] = [1, 4, 1, 6];
const VM_PERSISTENT: [u32; 4] = [1, 4, 1, 8];
const VM_AFFECTED_VMS: [u32; 3] = [1, 11, 0];

/// The bulk notification of the same event has a number this much larger.
pub(super) const TO_BULK: u32 = 10;

/// The last sub-identifier of the notification of one VM; `None` where RFC 7666 has none.
pub(super) const fn number(event: ChangeEvent) -> Option<u32> {
    Some(match event {
        ChangeEvent::State(OperState::Running) => 1,
        ChangeEvent::State(OperState::Shuttingdown) => 2,
        ChangeEvent::State(OperState::Shutdown) => 3,
        ChangeEvent::State(OperState::Paused) => 4,
        ChangeEvent::State(OperState::Suspending) => 5,
        ChangeEvent::State(OperState::Suspended) => 6,
        ChangeEvent::State(OperState::Resuming) => 7,
        ChangeEvent::State(OperState::Migrating) => 8,
        ChangeEvent::State(OperState::Crashed) => 9,
        ChangeEvent::Deleted => 10,
        ChangeEvent::State(OperState::Unknown | OperState::Other | OperState::Preparing) => {
            return None;
        }
    })
}

/// vmRunning to vmDeleted.
pub(super) fn of_one(change: &Change) -> Option<Notice> {
    let number = number(change.event)?;
    let instance = |column: [u32; 4]| below(&[&column[..], &[change.index.0]].concat());
    let uuid = change.uuid.map_or_else(Vec::new, |uuid| uuid.as_bytes().to_vec());
    let name = crate::mib::convert::admin_string_cut(&change.name).to_vec();
    let mut bindings = vec![
        (Oid::of(&SNMP_TRAP_OID), OwnedValue::ObjectIdentifier(below(&[0, number]))),
        (instance(VM_NAME), OwnedValue::OctetString(name)),
        (instance(VM_UUID), OwnedValue::OctetString(uuid)),
        (instance(VM_OPER_STATE), OwnedValue::Integer(change.before as i32)),
    ];
    if change.event == ChangeEvent::Deleted {
        let persistence = OwnedValue::Integer(change.persistence as i32);
        bindings.push((instance(VM_PERSISTENT), persistence));
    }
    Some(Notice { bindings })
}

/// vmBulkRunning to vmBulkDeleted.
pub(super) fn of_many(number: u32, affected: Vec<u8>) -> Notice {
    Notice {
        bindings: vec![
            (Oid::of(&SNMP_TRAP_OID), OwnedValue::ObjectIdentifier(below(&[0, number]))),
            (below(&VM_AFFECTED_VMS), OwnedValue::OctetString(affected)),
        ],
    }
}

fn below(parts: &[u32]) -> Oid {
    Oid::of(&[VM_MIB.parts(), parts].concat())
}

//! The notifications, and the objects that belong to them.

use super::{
    super::{
        context::{Snapshot, Switch},
        smi::{
            Notification, Object, ObjectRef, Scalars, Setter, Single, Syntax,
            convention::{FALSE, TRUE, TRUTH_VALUE},
        },
    },
    convention::VIRTUAL_MACHINE_LIST,
    nodes,
    vm::{NAME, OPER_STATE, PERSISTENT, UUID},
};
use crate::{
    inventory::{ChangeEvent, OperState},
    snmp::Value,
};

/// The switches.
pub static SWITCHES: Scalars<Snapshot> = Scalars {
    parent: &nodes::OBJECTS,
    objects: &[
        Object::read_write(
            9,
            "vmPerVMNotificationsEnabled",
            Syntax::Convention(&TRUTH_VALUE),
            "Whether notifications of single virtual machines are sent. A change is lost when the \
                agent is initialised again.",
            |snapshot, ()| truth(&snapshot.switches().per_vm),
            Setter::<Snapshot, Single>::new(|snapshot, (), value| {
                set_truth(&snapshot.switches().per_vm, value);
                Ok(())
            })
            .until_reinitialized(|snapshot| snapshot.switches().per_vm.reset()),
        ),
        Object::read_write(
            10,
            "vmBulkNotificationsEnabled",
            Syntax::Convention(&TRUTH_VALUE),
            "Whether notifications of several virtual machines at once are sent. A change is lost \
                when the agent is initialised again.",
            |snapshot, ()| truth(&snapshot.switches().bulk),
            Setter::<Snapshot, Single>::new(|snapshot, (), value| {
                set_truth(&snapshot.switches().bulk, value);
                Ok(())
            })
            .until_reinitialized(|snapshot| snapshot.switches().bulk.reset()),
        ),
    ],
};

fn truth(switch: &Switch) -> Option<Value<'static>> {
    Some(Value::Integer(if switch.is_on() { TRUE } else { FALSE }))
}

fn set_truth(switch: &Switch, value: Value<'_>) {
    switch.set(value == Value::Integer(TRUE));
}

/// What bulk notifications carry.
pub static BULK_VARIABLES: Scalars<Snapshot> =
    Scalars { parent: &nodes::OBJECTS, objects: OF_BULK };

/// vmAffectedVMs.
pub const AFFECTED_VMS: ObjectRef = BULK_VARIABLES.object("vmAffectedVMs");

const OF_BULK: &[Object<Snapshot, Single>] = &[Object::for_notify(
    11,
    "vmAffectedVMs",
    Syntax::Convention(&VIRTUAL_MACHINE_LIST),
    "The virtual machines whose change of state a bulk notification reports. It has a value in such a \
        notification only.",
)];

const OF_ONE: &[ObjectRef] = &[NAME, UUID, OPER_STATE];
const OF_ONE_DELETED: &[ObjectRef] = &[NAME, UUID, OPER_STATE, PERSISTENT];
const OF_MANY: &[ObjectRef] = &[AFFECTED_VMS];

const fn notification(
    number: u32,
    name: &'static str,
    objects: &'static [ObjectRef],
    description: &'static str,
) -> Notification {
    Notification { parent: &nodes::NOTIFICATIONS, number, name, objects, description }
}

/// vmOperState is the state before; the notification itself names the new one.
macro_rules! of_one {
    ($number:literal, $name:literal, $event:literal) => {
        notification(
            $number,
            $name,
            OF_ONE,
            concat!("A virtual machine ", $event, ". vmOperState is its previous state."),
        )
    };
}

macro_rules! of_many {
    ($number:literal, $name:literal, $event:literal) => {
        notification(
            $number,
            $name,
            OF_MANY,
            concat!(
                "One or more virtual machines ",
                $event,
                ". A manager can query vmOperState of the affected virtual machines."
            ),
        )
    };
}

/// The events, in the order of [`PER_VM`] and of [`BULK`].
const EVENTS: [ChangeEvent; 10] = [
    ChangeEvent::State(OperState::Running),
    ChangeEvent::State(OperState::Shuttingdown),
    ChangeEvent::State(OperState::Shutdown),
    ChangeEvent::State(OperState::Paused),
    ChangeEvent::State(OperState::Suspending),
    ChangeEvent::State(OperState::Suspended),
    ChangeEvent::State(OperState::Resuming),
    ChangeEvent::State(OperState::Migrating),
    ChangeEvent::State(OperState::Crashed),
    ChangeEvent::Deleted,
];

/// One notification per VM and change.
pub static PER_VM: [Notification; EVENTS.len()] = [
    of_one!(1, "vmRunning", "came from another state to running(4)"),
    of_one!(2, "vmShuttingdown", "came from another state to shuttingdown(10)"),
    of_one!(3, "vmShutdown", "came from another state to shutdown(11)"),
    of_one!(4, "vmPaused", "came from another state to paused(8)"),
    of_one!(5, "vmSuspending", "came from another state to suspending(5)"),
    of_one!(6, "vmSuspended", "came from another state to suspended(6)"),
    of_one!(7, "vmResuming", "came from another state to resuming(7)"),
    of_one!(8, "vmMigrating", "came from another state to migrating(9)"),
    of_one!(9, "vmCrashed", "has crashed"),
    notification(
        10,
        "vmDeleted",
        OF_ONE_DELETED,
        "A virtual machine has been deleted. vmOperState is its last state.",
    ),
];

/// One notification for many VMs.
pub static BULK: [Notification; EVENTS.len()] = [
    of_many!(11, "vmBulkRunning", "came from another state to running(4)"),
    of_many!(12, "vmBulkShuttingdown", "came from another state to shuttingdown(10)"),
    of_many!(13, "vmBulkShutdown", "came from another state to shutdown(11)"),
    of_many!(14, "vmBulkPaused", "came from another state to paused(8)"),
    of_many!(15, "vmBulkSuspending", "came from another state to suspending(5)"),
    of_many!(16, "vmBulkSuspended", "came from another state to suspended(6)"),
    of_many!(17, "vmBulkResuming", "came from another state to resuming(7)"),
    of_many!(18, "vmBulkMigrating", "came from another state to migrating(9)"),
    of_many!(19, "vmBulkCrashed", "have crashed"),
    of_many!(20, "vmBulkDeleted", "have been deleted"),
];

/// The notification of one VM; `None` where RFC 7666 has none.
#[must_use]
pub fn per_vm(event: ChangeEvent) -> Option<&'static Notification> {
    Some(&PER_VM[position(event)?])
}

/// The notification of several VMs; `None` where RFC 7666 has none.
#[must_use]
pub fn bulk(event: ChangeEvent) -> Option<&'static Notification> {
    Some(&BULK[position(event)?])
}

fn position(event: ChangeEvent) -> Option<usize> {
    EVENTS.iter().position(|&known| known == event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_notifications_say_their_events() {
        for (event, (one, many)) in EVENTS.iter().zip(PER_VM.iter().zip(&BULK)) {
            let event = match event {
                ChangeEvent::State(state) => format!("{state:?}"),
                ChangeEvent::Deleted => "Deleted".to_owned(),
            };
            assert_eq!(one.name, format!("vm{event}"));
            assert_eq!(many.name, format!("vmBulk{event}"));
        }
    }
}

//! The notifications, and the variables that belong to them.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::{
    agentx::{SetError, SetFailed},
    snmp::Value,
};

use super::{
    convention::{TRUTH_VALUE, VIRTUAL_MACHINE_LIST},
    schema::{Access, Getter, Object, Syntax},
};

/// TruthValue.
const TRUE: i32 = 1;
const FALSE: i32 = 2;

/// The two objects that a manager may set. A change lasts as long as the agent runs.
#[derive(Debug, Default)]
pub struct Switches {
    /// vmPerVMNotificationsEnabled.
    pub per_vm: AtomicBool,
    /// vmBulkNotificationsEnabled.
    pub bulk: AtomicBool,
}

/// Where there is nobody to set them.
pub(super) static OFF: Switches = Switches::new(false, false);

impl Switches {
    /// As they are at the start.
    #[must_use]
    pub const fn new(per_vm: bool, bulk: bool) -> Self {
        Self { per_vm: AtomicBool::new(per_vm), bulk: AtomicBool::new(bulk) }
    }

    /// The switch with the name that ends so, below vmObjects, and whether an instance of it is named.
    fn named(&self, suffix: &[u32]) -> Option<(&AtomicBool, bool)> {
        let (switch, instance) = match suffix {
            [1, 9, instance @ ..] => (&self.per_vm, instance),
            [1, 10, instance @ ..] => (&self.bulk, instance),
            _ => return None,
        };
        Some((switch, instance == [0]))
    }

    /// RFC 3416 section 4.2.5, in its order.
    pub(super) fn test(&self, suffix: &[u32], value: Option<Value<'_>>) -> Result<(), SetError> {
        let (_, exists) = self.named(suffix).ok_or(SetError::NotWritable)?;
        match value {
            Some(Value::Integer(TRUE | FALSE)) if !exists => Err(SetError::NoCreation),
            Some(Value::Integer(TRUE | FALSE)) => Ok(()),
            Some(Value::Integer(_)) => Err(SetError::WrongValue),
            _ => Err(SetError::WrongType),
        }
    }

    pub(super) fn set(&self, suffix: &[u32], value: Value<'_>) -> Result<(), SetFailed> {
        let Some((switch, true)) = self.named(suffix) else { return Err(SetFailed) };
        switch.store(value == Value::Integer(TRUE), Relaxed);
        Ok(())
    }
}

fn truth(switch: &AtomicBool) -> Option<Value<'static>> {
    Some(Value::Integer(if switch.load(Relaxed) { TRUE } else { FALSE }))
}

/// The switches, and what bulk notifications carry.
pub const VARIABLES: &[Object] = &[
    Object::read_only(
        9,
        "vmPerVMNotificationsEnabled",
        Syntax::Convention(&TRUTH_VALUE),
        "Whether notifications of single virtual machines are sent. A change is forgotten when the \
            agent is initialised again.",
        Getter::Scalar(|view| truth(&view.switches.per_vm)),
    )
    .with_access(Access::ReadWrite),
    Object::read_only(
        10,
        "vmBulkNotificationsEnabled",
        Syntax::Convention(&TRUTH_VALUE),
        "Whether notifications of several virtual machines at once are sent. A change is forgotten \
            when the agent is initialised again.",
        Getter::Scalar(|view| truth(&view.switches.bulk)),
    )
    .with_access(Access::ReadWrite),
    Object::read_only(
        11,
        "vmAffectedVMs",
        Syntax::Convention(&VIRTUAL_MACHINE_LIST),
        "All virtual machines whose change of state a bulk notification tells of. It has a value \
            within such a notification only.",
        Getter::None,
    )
    .with_access(Access::AccessibleForNotify),
];

/// A notification: { vmNotifications `number` }.
#[derive(Debug)]
pub struct Notification {
    /// The last sub-identifier.
    pub number: u32,
    /// Descriptor.
    pub name: &'static str,
    /// Names of the objects that it carries, in order.
    pub objects: &'static [&'static str],
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

const OF_ONE: &[&str] = &["vmName", "vmUUID", "vmOperState"];
const OF_ONE_DELETED: &[&str] = &["vmName", "vmUUID", "vmOperState", "vmPersistent"];
const OF_MANY: &[&str] = &["vmAffectedVMs"];

/// vmOperState is the state before; the notification itself names the new one.
macro_rules! of_one {
    ($number:literal, $name:literal, $event:literal) => {
        Notification {
            number: $number,
            name: $name,
            objects: OF_ONE,
            description: concat!(
                "A virtual machine ",
                $event,
                ". vmOperState is the state that it was in before."
            ),
        }
    };
}

macro_rules! of_many {
    ($number:literal, $name:literal, $event:literal) => {
        Notification {
            number: $number,
            name: $name,
            objects: OF_MANY,
            description: concat!(
                "One or more virtual machines ",
                $event,
                ". A manager that needs to know more asks for vmOperState of those that it cares for."
            ),
        }
    };
}

/// One notification per VM and change.
pub static PER_VM: &[Notification] = &[
    of_one!(1, "vmRunning", "came from another state to running(4)"),
    of_one!(2, "vmShuttingdown", "came from another state to shuttingdown(10)"),
    of_one!(3, "vmShutdown", "came from another state to shutdown(11)"),
    of_one!(4, "vmPaused", "came from another state to paused(8)"),
    of_one!(5, "vmSuspending", "came from another state to suspending(5)"),
    of_one!(6, "vmSuspended", "came from another state to suspended(6)"),
    of_one!(7, "vmResuming", "came from another state to resuming(7)"),
    of_one!(8, "vmMigrating", "came from another state to migrating(9)"),
    of_one!(9, "vmCrashed", "has crashed"),
    Notification {
        number: 10,
        name: "vmDeleted",
        objects: OF_ONE_DELETED,
        description: "A virtual machine has been deleted. vmOperState is the last state that it was in.",
    },
];

/// One notification for many VMs.
pub static BULK: &[Notification] = &[
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

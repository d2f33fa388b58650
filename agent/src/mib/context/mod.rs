//! What the getters of all modules read ([`Snapshot`]), and how it becomes SNMP's values ([`convert`]).

pub mod convert;
mod snapshot;
mod switches;

pub use snapshot::Snapshot;
pub use switches::{NotificationSwitches, Switch};

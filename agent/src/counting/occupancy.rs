//! How full the tables of records are.

use std::collections::BTreeMap;

use crate::counters::{Fill, Holder};

/// How full the tables are, and which processes went without.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Occupancy {
    /// The records of VMs.
    pub vms: Fill,
    /// The blocks of thread records.
    pub blocks: Fill,
    /// For each holder the number of processes that have no VM record now, and the reason.
    pub refused: BTreeMap<Holder, (usize, String)>,
    /// For each holder the number of VMs that have not found a record for each of their threads.
    pub short: BTreeMap<Holder, usize>,
}

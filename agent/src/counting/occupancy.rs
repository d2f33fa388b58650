//! For whom records are, and how full the tables of records are.

use std::collections::BTreeMap;

/// For whom a VM is counted.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Holder {
    /// Root, or libvirt: no share limits its VMs.
    Trusted,
    /// A user, who may start as many processes as the user likes.
    User(u32),
}

/// How full a table of records is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Fill {
    /// Records in the table.
    pub size: usize,
    /// Records in use.
    pub used: usize,
    /// Those of them that users hold, who are neither root nor libvirt.
    pub of_users: usize,
}

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

//! Where the facts about VMs come from: [`procfs`] finds those that show themselves in the kernel, and [`libvirt`] the
//! domains of a libvirt connection, running or not. [`host`] knows the host's network interfaces.
//!
//! Each source has a thread of its own, reports [`Fact`](crate::inventory::Fact)s and takes [`Command`]s. Only its own
//! thread waits for what it asks; nothing else does.

pub mod host;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod procfs;
mod storage_location;

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustix::event::Timespec;

use crate::{
    account::Account,
    heartbeat::Heartbeat,
    inventory::{DiskQuery, SourceId, VmUuid},
};

/// A source of facts at work.
pub trait Source: Send + Sync {
    /// `procfs` or `libvirt`.
    fn name(&self) -> &'static str;

    /// The libvirt connection; `None` = it is not one of libvirt's.
    fn connection(&self) -> Option<(SourceId, &str)>;

    /// Takes a command. Never waits.
    fn command(&self, command: Command);

    /// How the source is now. May wait half a second for what it asks.
    fn health(&self) -> Health;

    /// How often everything was read again since the start.
    fn scans(&self) -> u64;

    /// Whether the source's thread works, where the agent cannot do without it.
    fn heartbeat(&self) -> Option<Arc<Heartbeat>>;
}

/// What a source is to do. One that cannot do it leaves it.
#[derive(Clone, Debug)]
pub enum Command {
    /// Scan this process again: its disks or interfaces have changed.
    Rescan(u32),
    /// Find out what these paths of disks mean to this process, besides those on its command line.
    ResolvePaths(u32, Arc<[String]>),
    /// This process, which started at these clock ticks since boot, is that of a domain of root's libvirt, as files tell that only
    /// root can write.
    Entrust(u32, u64),
    /// The fence with this number has come back: readers see all facts before it.
    Reached(u64),
    /// Describe this domain again.
    Describe(VmUuid),
    /// The disks of a domain have changed, or what is to be asked about them.
    QueryDisks(DiskQuery),
}

/// How a source is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Health {
    /// `live`, or what is wrong.
    pub state: String,
    /// Since when what it reported may be old.
    pub stale_since: Option<SystemTime>,
    /// Reads of processes that have not returned.
    pub hanging: Vec<HangingRead>,
    /// Accounts whose processes are scanned later, because these scans have cost the share of an account.
    pub spent: Vec<Spent>,
    /// Lines about VMs that were left out of the log, because a user caused too many.
    pub left_out: u64,
}

/// An account whose share of the scans' CPU time was spent of late: its processes are scanned later than something happens to
/// them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Spent {
    /// The account.
    pub account: Account,
    /// Processes that wait to be scanned.
    pub waiting: usize,
    /// Scans that had to wait so far.
    pub deferred: u64,
}

/// A read of a process that has not returned: what was known of the process may be old.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HangingRead {
    /// Process id.
    pub pid: u32,
    /// Name of the program.
    pub program: String,
    /// Since when it hangs.
    pub since: SystemTime,
    /// The function of the kernel in which it waits; `None` = the kernel does not say.
    pub function: Option<String>,
}

/// A limit as poll(2) and epoll_wait(2) take it. Saturates.
fn timespec(limit: Duration) -> Timespec {
    Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    }
}

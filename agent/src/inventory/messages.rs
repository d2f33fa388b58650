//! What goes into the [`Core`](super::Core) and what comes out of it. All of it is data: a recorded list of facts can be
//! played again.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use super::{
    AdminState, Change, ChangeEvent, CountedBy, Domain, DomainDisk, FoundState, IfIndex, Inventory,
    OperState, VcpuState, VmIndex, VmProcess, VmUuid,
};
use crate::counters::VmSlot;

/// A moment on the two clocks that the inventory needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Now {
    /// For deadlines.
    pub instant: Instant,
    /// Time since boot in ns (`CLOCK_BOOTTIME`), for vmTableLastChange.
    pub since_boot_ns: u64,
}

/// A libvirt connection, by its place in `inventory.libvirt`.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SourceId(pub u8);

/// Something that a source or the counting has found out.
#[derive(Debug)]
pub enum Fact {
    /// A process is a VM, and this is how it is now.
    Process(Arc<VmProcess>),
    /// A process is no VM any more. `killed`: by a signal, where the kernel said so.
    ProcessGone {
        /// Process id.
        pid: u32,
        /// Whether a signal ended it.
        killed: bool,
    },
    /// Whether the vCPUs of a known process run, where that has changed.
    Vcpus(u32, VcpuState),
    /// All processes that were there at the start have been reported.
    ProcessesListed,
    /// All processes that were there at the start have been scanned, also those that had to wait: whatever has not been reported has
    /// ended, or is no VM.
    ProcessesScanned,
    /// Numbers of the host's online CPUs, ascending.
    Cpus(Vec<u32>),
    /// The kernel counts I/O of this process on an image that it did not know before.
    ImageTaken(u32),
    /// A libvirt connection reports about its domains.
    Libvirt(SourceId, DomainFact),
    /// The numbers of a network interface of the host; `None` = there is no interface of this name.
    HostNic(String, Option<NicNumbers>),
    /// How the disks of a VM are counted.
    Counted(CountingReport),
    /// Is returned as [`Output::Reached`] after the view that has all facts before this one.
    Fence(Fence),
}

/// What a libvirt connection reports.
#[derive(Debug)]
pub enum DomainFact {
    /// libvirt's name and version of the hypervisor.
    Hypervisor {
        /// vmHvSoftware.
        software: String,
        /// vmHvVersion.
        version: String,
    },
    /// All domains: those that were described, and those that could not be. What is known of the latter stays. libvirt answers.
    /// Events that led to what was found may still come.
    Listed(Vec<Domain>, BTreeSet<VmUuid>),
    /// Some domains as they are now (`None` = it is gone), after these events. What is found may be ahead of the events.
    Changed {
        /// By UUID. A domain of `events` that is missing here could not be described.
        domains: BTreeMap<VmUuid, Option<Domain>>,
        /// In the order in which they happened.
        events: Vec<(VmUuid, ChangeEvent)>,
    },
    /// The state of a known domain after these events, and nothing else about it: it is described later.
    State(VmUuid, FoundState, Vec<ChangeEvent>),
    /// An event of this domain has come, the one with this number, which is above that of every event before.
    EventCame(VmUuid, u64),
    /// A [`Changed`](Self::Changed) or [`State`](Self::State) about each of these domains follows. They have all events
    /// up to this number.
    EventsUnderWay(BTreeSet<VmUuid>, u64),
    /// The domains that start with the host.
    AutoStart(BTreeSet<VmUuid>),
    /// Whether a running domain is being migrated to another host.
    Migrating(VmUuid, bool),
    /// The connection is lost. What libvirt said last stays.
    Lost,
}

/// A network interface of the host, as IF-MIB numbers it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NicNumbers {
    /// ifIndex.
    pub if_index: u32,
    /// Whether a process can hold it by a descriptor: a tap or macvtap.
    pub is_tap: bool,
    /// The user to whom a tap was given: no other user can open it. `None` = it was given to none.
    pub owner: Option<u32>,
    /// ifIndex of the physical interface through which it reaches the network.
    pub parent: IfIndex,
}

/// How the disks of a VM's process are counted.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CountingReport {
    /// Process id.
    pub pid: u32,
    /// The record of the process.
    pub vm: VmSlot,
    /// By vmStorageIndex.
    pub disks: Vec<(u32, CountedBy)>,
    /// The VM does I/O on a file of which it is not known to which disk it belongs.
    pub has_unidentified: bool,
}

/// Whom a fence is returned to, and the sender's own number for it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fence {
    /// The source of processes.
    Procfs(u64),
    /// The counting.
    Counting(u64),
    /// The thread that owns the core.
    Owner(u64),
}

/// What the core wants done. It is drained in this order: the view, the changes that it brought, the rest.
#[derive(Debug)]
pub enum Output {
    /// Readers get this view.
    Publish(Arc<Inventory>),
    /// A VM went from one state to another.
    Changed(Change),
    /// The disks of a VM's process are to be counted.
    Count(Arc<VmPlan>),
    /// A VM's process is gone; its disks are not counted any more.
    EndCount(VmSlot),
    /// A process is to be scanned again, since its disks or interfaces have changed.
    Rescan(u32),
    /// What these paths of disks mean to a process is to be found out: all that libvirt has for its domain.
    ResolvePaths(u32, Arc<[String]>),
    /// A process, which started at these clock ticks since boot, is that of a domain of root's libvirt, as its files tell.
    Entrust(u32, u64),
    /// libvirt is to describe a domain again: it does I/O on a file that is not known.
    Describe(SourceId, VmUuid),
    /// The disks of a domain have changed, or what is to be asked about them.
    QueryDisks(SourceId, DiskQuery),
    /// What was learned in the background about the disks of this VM is of no use any more.
    ForgetDisks(VmIndex),
    /// The indexes have changed: [`Core::saved_indexes`](super::Core::saved_indexes) is to be written.
    SaveIndexes,
    /// The fence, after everything before it.
    Reached(Fence),
}

/// What is to be counted of one VM: which disks its process has.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct VmPlan {
    /// The record of the process.
    pub vm: VmSlot,
    /// The process, with the files that it has open.
    pub process: Arc<VmProcess>,
    /// The disks with their vmStorageIndex.
    pub disks: Vec<(u32, DomainDisk)>,
    /// The disks are those of a libvirt domain. Only a process's own description may know less than libvirt's.
    pub is_of_domain: bool,
    /// libvirt answers, and may be about to report the domain of this process.
    pub may_be_of_domain: bool,
}

/// What libvirt is to be asked about the disks of a domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DiskQuery {
    /// The domain.
    pub uuid: VmUuid,
    /// Its vmIndex: the key of what is learned.
    pub vm: VmIndex,
    /// Which run of the VM this is: what is learned about another run is of no use.
    pub run: u32,
    /// Its disks.
    pub disks: Arc<[QueriedDisk]>,
    /// The kernel does not count all of them: QEMU's own counts are wanted.
    pub wants_io: bool,
    /// The answer is wanted at once, not only with the next round.
    pub asks_now: bool,
    /// The domain runs.
    pub is_active: bool,
}

impl DiskQuery {
    /// Whether the domain runs and has disks.
    #[must_use]
    pub fn has_active_disks(&self) -> bool {
        self.is_active && !self.disks.is_empty()
    }
}

/// A disk of a domain.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueriedDisk {
    /// Its name in the guest.
    pub target: String,
    /// vmStorageIndex.
    pub storage: u32,
    /// Whether it has a size: an empty drive has none.
    pub has_size: bool,
}

/// vmAdminState of a domain that libvirt reported only by an event, which does not tell whether a user asked for a pause.
pub(super) const fn admin_state_after(state: OperState) -> AdminState {
    match state {
        OperState::Suspending | OperState::Suspended => AdminState::Suspended,
        OperState::Shuttingdown | OperState::Shutdown | OperState::Crashed => AdminState::Shutdown,
        OperState::Unknown
        | OperState::Other
        | OperState::Preparing
        | OperState::Running
        | OperState::Paused
        | OperState::Resuming
        | OperState::Migrating => AdminState::Running,
    }
}

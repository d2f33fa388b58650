//! The thread that has the disks of VMs counted. It takes plans, and reports how each disk is counted; attaching programs
//! may take the kernel milliseconds, which no event waits for.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::vm_disks::{Outcome, VmDisks};
use crate::{
    counters::{ImageSlot, Records, VmSlot, since_boot_ns},
    inventory::{Fact, Fence, Now, VmPlan},
    probe::{ImageHooks, Method},
    worker::{Facts, Heartbeat, join, recv_until},
};

/// Retry interval after a failed attach: the kernel refuses for a moment what was detached just now.
const UNATTACHED: Duration = Duration::from_millis(20);

/// One round of counting may attach and detach every program.
const DEADLINE: Duration = Duration::from_secs(30);

/// The hooks of disks, shared with the status.
pub type SharedHooks = Arc<Mutex<ImageHooks>>;

/// What the thread is to do.
pub enum Command {
    /// The disks of a VM are to be counted.
    Count(Arc<VmPlan>),
    /// A VM's process is gone.
    End(VmSlot),
    /// The fence with this number has come back: readers see every report before it.
    Reached(u64),
    /// To be called after all commands before it.
    Then(Box<dyn FnOnce() + Send>),
}

/// The counting at work. To be dropped after all clones of [`commands`](Self::commands): it ends then, with no count half
/// moved from one record to another.
#[derive(Debug)]
pub struct Counting {
    /// Where commands go.
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread works.
    pub heartbeat: Arc<Heartbeat>,
}

impl Counting {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(records: Arc<Records>, hooks: SharedHooks, facts: Facts) -> io::Result<Self> {
        let (commands, receiver) = unbounded();
        let heartbeat = Arc::new(Heartbeat::new("counting", DEADLINE));
        let disks = Disks {
            records,
            hooks,
            vms: BTreeMap::new(),
            retry_hooks: None,
            merged: Vec::new(),
            fences: 0,
            facts,
        };
        let of_thread = Arc::clone(&heartbeat);
        let thread = std::thread::Builder::new()
            .name("counting".to_owned())
            .spawn(move || disks.run(&receiver, &of_thread))?;
        Ok(Self { commands: Some(commands), thread: Some(thread), heartbeat })
    }

    /// Where commands go.
    #[must_use]
    pub fn commands(&self) -> Option<Sender<Command>> {
        self.commands.clone()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.commands = None;
        join(&mut self.thread, "that counts disks");
    }
}

/// The disks of all VMs.
struct Disks {
    records: Arc<Records>,
    hooks: SharedHooks,
    vms: BTreeMap<VmSlot, VmDisks>,
    /// When hooks that could not be attached are tried again.
    retry_hooks: Option<Instant>,
    /// Records to be freed when the fence with this number or a later one has come back.
    merged: Vec<(u64, ImageSlot)>,
    fences: u64,
    facts: Facts,
}

impl Disks {
    fn run(mut self, commands: &Receiver<Command>, heartbeat: &Heartbeat) {
        let _end = self.facts.end_guard("counting");
        loop {
            heartbeat.rest();
            let command = recv_until(commands, self.due());
            heartbeat.work();
            let first = match command {
                Ok(command) => Some(command),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let mut then = Vec::new();
            let mut changed = BTreeSet::new();
            for command in first.into_iter().chain(commands.try_iter()) {
                match command {
                    Command::Count(plan) => {
                        let slot = plan.vm;
                        changed.insert(slot);
                        match self.vms.get_mut(&slot) {
                            Some(vm) => vm.plan = plan,
                            None => drop(self.vms.insert(slot, VmDisks::new(plan))),
                        }
                    }
                    Command::End(slot) => drop(self.vms.remove(&slot)),
                    Command::Reached(number) => self.free(number),
                    Command::Then(call) => then.push(call),
                }
            }
            self.count(changed);
            then.into_iter().for_each(|call| call());
        }
    }

    fn due(&self) -> Option<Instant> {
        self.vms.values().filter_map(VmDisks::due).chain(self.retry_hooks).min()
    }

    /// Counts the VMs that have changed, and those that are due.
    fn count(&mut self, mut changed: BTreeSet<VmSlot>) {
        let now = Now { instant: Instant::now(), since_boot_ns: since_boot_ns() };
        let is_due = |vm: &VmDisks| vm.due().is_some_and(|due| due <= now.instant);
        changed.extend(self.vms.iter().filter(|(_, vm)| is_due(vm)).map(|(slot, _)| *slot));
        if self.retry_hooks.is_some_and(|due| due <= now.instant) {
            // Another method may be the one that works now.
            changed.extend(self.vms.keys());
        }
        let mut reports = Vec::new();
        let hooks = self.hooks.lock().unwrap_or_else(PoisonError::into_inner);
        for slot in changed {
            let Some(vm) = self.vms.get_mut(&slot) else { continue };
            // The process may have ended, and its record be another's, before this thread came to it.
            if !self.records.is_vm(slot, vm.plan.process.pid) {
                self.vms.remove(&slot);
                continue;
            }
            let Outcome { report, merged } = vm.count(&self.records, &hooks, now);
            reports.extend(report);
            self.merged.extend(merged.into_iter().map(|image| (self.fences + 1, image)));
        }
        let works = attach(hooks, &self.vms);
        self.retry_hooks = (!works).then(|| now.instant + UNATTACHED);
        for report in reports {
            self.facts.send(Fact::Counted(report));
        }
        if self.merged.iter().any(|(fence, _)| *fence > self.fences) {
            self.fences += 1;
            self.facts.send(Fact::Fence(Fence::Counting(self.fences)));
        }
    }

    fn free(&mut self, number: u64) {
        for (_, image) in self.merged.extract_if(.., |(fence, _)| *fence <= number) {
            self.records.free_merged(image);
        }
    }
}

/// Attaches the hooks that a disk needs, and detaches the others. Whether all that are needed are attached.
fn attach(mut hooks: MutexGuard<'_, ImageHooks>, vms: &BTreeMap<VmSlot, VmDisks>) -> bool {
    let needed: BTreeSet<Method> = vms.values().flat_map(|vm| vm.needed.iter().copied()).collect();
    hooks.set_attached(|method| needed.contains(&method))
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(plan) => f.debug_tuple("Count").field(plan).finish(),
            Self::End(slot) => f.debug_tuple("End").field(slot).finish(),
            Self::Reached(fence) => f.debug_tuple("Reached").field(fence).finish(),
            Self::Then(_) => f.write_str("Then"),
        }
    }
}

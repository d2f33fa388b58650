//! The thread that has the disks of VMs counted. It takes plans, and reports how each disk is counted; attaching programs
//! may take the kernel milliseconds, which no event waits for.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::{
    SelfTest,
    vm_disks::{Outcome, VmDisks},
};
use crate::{
    counters::{ImageSlot, Records, VmSlot, since_boot_ns},
    heartbeat::Heartbeat,
    inventory::{Fact, Fence, Now, VmPlan},
    probe::{ImageHooks, Method},
    worker::{Facts, join, recv_until},
};

/// Retry interval after a failed attach: the kernel refuses for a moment what was detached just now.
const UNATTACHED: Duration = Duration::from_millis(20);

/// How often attached hooks are tested, and those that failed looked at. A test takes some 0.1 ms.
const PROOF: Duration = Duration::from_secs(1);

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
    pub fn start(
        records: Arc<Records>,
        hooks: SharedHooks,
        self_test: SelfTest,
        facts: Facts,
    ) -> io::Result<Self> {
        let (commands, receiver) = unbounded();
        let heartbeat = Arc::new(Heartbeat::new("counting", DEADLINE));
        let disks = Disks {
            records,
            hooks,
            self_test,
            vms: BTreeMap::new(),
            of_all: OfAll::default(),
            retry_hooks: None,
            proof: None,
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
    self_test: SelfTest,
    vms: BTreeMap<VmSlot, VmDisks>,
    of_all: OfAll,
    /// When hooks that could not be attached are tried again.
    retry_hooks: Option<Instant>,
    /// When the hooks are tested again.
    proof: Option<Instant>,
    /// Records to be freed when the fence with this number or a later one has come back.
    merged: Vec<(u64, ImageSlot)>,
    fences: u64,
    facts: Facts,
}

/// What the VMs need together: an event costs what its own VM costs.
#[derive(Debug, Default)]
struct OfAll {
    /// When VMs are to be counted again, whatever happens.
    due: BTreeSet<(Instant, VmSlot)>,
    /// The number of VMs that need a method.
    needed: BTreeMap<Method, usize>,
}

impl OfAll {
    fn add(&mut self, slot: VmSlot, vm: &VmDisks) {
        self.due.extend(vm.due().map(|due| (due, slot)));
        for method in &vm.needed {
            *self.needed.entry(*method).or_default() += 1;
        }
    }

    /// Takes out what [`add`](Self::add) put in, before the VM changes.
    fn remove(&mut self, slot: VmSlot, vm: &VmDisks) {
        if let Some(due) = vm.due() {
            self.due.remove(&(due, slot));
        }
        for method in &vm.needed {
            if let Entry::Occupied(mut vms) = self.needed.entry(*method) {
                *vms.get_mut() -= 1;
                if *vms.get() == 0 {
                    vms.remove();
                }
            }
        }
    }
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
                    Command::End(slot) => self.remove(slot),
                    Command::Reached(number) => self.free(number),
                    Command::Then(call) => then.push(call),
                }
            }
            self.count(changed);
            then.into_iter().for_each(|call| call());
        }
    }

    fn due(&self) -> Option<Instant> {
        let first = self.of_all.due.first().map(|(due, _)| *due);
        first.into_iter().chain(self.retry_hooks).chain(self.proof).min()
    }

    fn remove(&mut self, slot: VmSlot) {
        if let Some(vm) = self.vms.remove(&slot) {
            self.of_all.remove(slot, &vm);
        }
    }

    /// Counts the VMs that have changed, and those that are due.
    fn count(&mut self, mut changed: BTreeSet<VmSlot>) {
        let now = Now { instant: Instant::now(), since_boot_ns: since_boot_ns() };
        let due = self.of_all.due.iter().take_while(|(due, _)| *due <= now.instant);
        changed.extend(due.map(|(_, slot)| *slot));
        if self.retry_hooks.is_some_and(|due| due <= now.instant) {
            // Another method may be the one that works now.
            changed.extend(self.vms.keys());
        }
        let mut reports = Vec::new();
        let hooks = Arc::clone(&self.hooks);
        let mut hooks = hooks.lock().unwrap_or_else(PoisonError::into_inner);
        // `kvmeter detach` has ended the counting for good.
        if self.proof.is_some_and(|due| due <= now.instant)
            && self.records.are_counted()
            && hooks.prove(now.instant, |method| self.self_test.run(method))
        {
            changed.extend(self.vms.keys());
        }
        while let Some(slot) = changed.pop_first() {
            let Some(vm) = self.vms.get_mut(&slot) else { continue };
            // The process may have ended, and its record be another's, before this thread came to it.
            if !self.records.is_vm(slot, vm.plan.process.pid) {
                self.remove(slot);
                continue;
            }
            self.of_all.remove(slot, vm);
            let Outcome { report, merged, opened } = vm.count(&self.records, &*hooks, now);
            self.of_all.add(slot, vm);
            changed.extend(affected(&self.vms, slot, &opened));
            reports.extend(report);
            self.merged.extend(merged.into_iter().map(|image| (self.fences + 1, image)));
        }
        let works = hooks.set_attached(|method| self.of_all.needed.contains_key(&method));
        self.retry_hooks = (!works).then(|| now.instant + UNATTACHED);
        if self.vms.is_empty() {
            self.proof = None;
        } else if hooks.has_unproved() {
            self.proof = Some(now.instant);
        } else if self.proof.is_none_or(|due| due <= now.instant) {
            self.proof = hooks.next_proof(now.instant, PROOF);
        }
        drop(hooks);
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

/// The VMs for which it matters that another one has opened these block devices: its requests may be taken for theirs.
pub(super) fn affected<'a>(
    vms: &'a BTreeMap<VmSlot, VmDisks>,
    by: VmSlot,
    opened: &'a BTreeSet<u32>,
) -> impl Iterator<Item = VmSlot> + 'a {
    let others = vms.iter().filter(move |(slot, _)| !opened.is_empty() && **slot != by);
    others.filter(|(_, vm)| vm.is_delayed_on(opened)).map(|(slot, _)| *slot)
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inventory::VmProcess;

    fn vm(slot: u16, needed: &[Method], grown_up: Option<Instant>) -> VmDisks {
        let plan = VmPlan {
            vm: VmSlot(slot),
            process: Arc::new(VmProcess::default()),
            disks: Vec::new(),
            is_of_domain: false,
            may_be_of_domain: false,
        };
        let mut vm = VmDisks::new(Arc::new(plan));
        vm.needed = needed.iter().copied().collect();
        vm.grown_up = grown_up;
        vm
    }

    #[test]
    fn a_method_is_needed_until_the_last_vm_does_not_need_it() {
        let mut of_all = OfAll::default();
        let now = Instant::now();
        let first = vm(1, &[Method::Dio, Method::Bdev], Some(now + Duration::from_secs(2)));
        let second = vm(2, &[Method::Dio], Some(now));
        of_all.add(VmSlot(1), &first);
        of_all.add(VmSlot(2), &second);
        assert_eq!(of_all.due.first(), Some(&(now, VmSlot(2))));
        of_all.remove(VmSlot(2), &second);
        assert_eq!(of_all.needed.keys().count(), 2);
        assert_eq!(of_all.due.first().map(|(_, slot)| *slot), Some(VmSlot(1)));
        of_all.remove(VmSlot(1), &first);
        assert!(of_all.needed.is_empty() && of_all.due.is_empty());
    }
}

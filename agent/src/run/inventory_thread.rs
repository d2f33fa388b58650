//! The thread that owns the inventory's core: it takes the facts of all sources from one channel, publishes each view
//! before it passes on the changes that the view has, and hands the rest of the core's outputs to those who carry them out.

use std::{
    fmt, io,
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::index_file::IndexFile;
use crate::{
    counters::{SlowValues, since_boot_ns},
    counting,
    heartbeat::Heartbeat,
    inventory::{
        Change, Core, CoreConfig, Fact, Fence, Now, Output, Registry, SavedIndexes, SourceId,
    },
    sources::{Command, Source},
    worker::{Facts, join, recv_until},
};

/// Facts that are handled before the outputs are drained: a storm of events does not keep readers from the newest view.
const BATCH: usize = 128;

/// New indexes are gathered for this long and written together.
const SAVE_DELAY: Duration = Duration::from_millis(50);

/// A batch of facts takes milliseconds.
const DEADLINE: Duration = Duration::from_secs(10);

/// The fence that ends the thread.
const STOP: u64 = u64::MAX;

/// The inventory before its thread starts: sources may report already.
#[derive(Debug)]
pub struct Setup {
    /// Where sources report.
    pub facts: Facts,
    /// Where readers find the view.
    pub registry: Arc<Registry>,
    /// What query threads learn.
    pub slow: Arc<SlowValues>,
    /// Why a thread cannot go on: the agent ends then.
    failures: UnboundedReceiver<String>,
    sender: Sender<Fact>,
    receiver: Receiver<Fact>,
    core: Core,
    index_file: IndexFile,
}

/// Those who carry out what the core wants done.
pub struct Outlets {
    /// The sources; those of libvirt name their connection.
    pub sources: Vec<Arc<dyn Source>>,
    /// The counting, where there are probes.
    pub counting: Option<Sender<counting::Command>>,
    /// Gets each change of state; must not wait.
    pub on_change: Box<dyn Fn(Change) + Send>,
}

/// The inventory at work. It ends when this is dropped, with all indexes written.
#[derive(Debug)]
pub struct Inventory {
    facts: Sender<Fact>,
    reached: Receiver<u64>,
    fences: u64,
    thread: Option<JoinHandle<()>>,
    /// Whether the thread works.
    pub heartbeat: Arc<Heartbeat>,
}

impl Setup {
    /// An inventory with the indexes that are kept in `state_dir`.
    #[must_use]
    pub fn new(config: CoreConfig, state_dir: &Path) -> Self {
        let index_file = IndexFile::new(state_dir);
        let core = Core::new(config, index_file.load(), now());
        let (sender, receiver) = unbounded();
        let (failed, failures) = unbounded_channel();
        Self {
            facts: Facts::new(sender.clone(), failed),
            registry: Arc::new(Registry::new(core.view())),
            slow: Arc::default(),
            failures,
            sender,
            receiver,
            core,
            index_file,
        }
    }

    /// Starts the thread. Also gives back where to learn why another thread cannot go on.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub fn start(self, outlets: Outlets) -> io::Result<(Inventory, UnboundedReceiver<String>)> {
        let Self { facts, registry, slow, failures, sender, receiver, core, index_file } = self;
        let (saved, writer) = index_file.writer()?;
        let (reached_sender, reached) = bounded(16);
        let heartbeat = Arc::new(Heartbeat::new("inventory", DEADLINE));
        let owner = Owner {
            core,
            receiver,
            registry,
            slow,
            outlets,
            saved,
            save_due: None,
            reached: reached_sender,
        };
        let of_thread = Arc::clone(&heartbeat);
        let run = move || {
            let _end = facts.end_guard("inventory");
            owner.run(&of_thread);
            join(&mut Some(writer), "that writes the indexes");
        };
        let thread = std::thread::Builder::new().name("inventory".to_owned()).spawn(run)?;
        let inventory =
            Inventory { facts: sender, reached, fences: 0, thread: Some(thread), heartbeat };
        Ok((inventory, failures))
    }
}

impl Inventory {
    /// Waits until the view has all facts that have been reported so far, and how the disks in it are counted. Whether
    /// that was so within `limit`.
    pub fn flush(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        // What the counting reports comes after the first fence.
        (0..2).all(|_| {
            self.fences += 1;
            let fence = self.fences;
            let _ = self.facts.send(Fact::Fence(Fence::Owner(fence)));
            loop {
                match self.reached.recv_deadline(end) {
                    Ok(reached) if reached == fence => return true,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        })
    }
}

impl Drop for Inventory {
    fn drop(&mut self) {
        let _ = self.facts.send(Fact::Fence(Fence::Owner(STOP)));
        join(&mut self.thread, "of the inventory");
    }
}

struct Owner {
    core: Core,
    receiver: Receiver<Fact>,
    registry: Arc<Registry>,
    slow: Arc<SlowValues>,
    outlets: Outlets,
    saved: Sender<SavedIndexes>,
    /// When new indexes are to be written.
    save_due: Option<Instant>,
    reached: Sender<u64>,
}

impl Owner {
    fn run(mut self, heartbeat: &Heartbeat) {
        loop {
            heartbeat.rest();
            let due = self.core.poll_timeout().into_iter().chain(self.save_due).min();
            let first = recv_until(&self.receiver, due);
            heartbeat.work();
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                break;
            }
            let mut ends = false;
            for fact in first.into_iter().chain(self.receiver.try_iter()).take(BATCH) {
                ends |= matches!(fact, Fact::Fence(Fence::Owner(STOP)));
                self.core.handle(fact, now());
            }
            if self.core.poll_timeout().is_some_and(|due| due <= Instant::now()) {
                self.core.handle_timeout(now());
            }
            while let Some(output) = self.core.poll_output() {
                self.carry_out(output);
            }
            if ends {
                break;
            }
            if self.save_due.is_some_and(|due| due <= Instant::now()) {
                self.save();
            }
        }
        if self.save_due.is_some() {
            self.save();
        }
    }

    fn save(&mut self) {
        self.save_due = None;
        // Fails only after the writer has panicked.
        let _ = self.saved.send(self.core.saved_indexes());
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Publish(view) => self.registry.publish(view),
            Output::Changed(change) => (self.outlets.on_change)(change),
            Output::Count(plan) => self.count(counting::Command::Count(plan)),
            Output::EndCount(slot) => self.count(counting::Command::End(slot)),
            Output::Rescan(pid) => self.command(None, Command::Rescan(pid)),
            Output::ResolvePaths(pid, paths) => {
                self.command(None, Command::ResolvePaths(pid, paths));
            }
            Output::Entrust(pid, start) => self.command(None, Command::Entrust(pid, start)),
            Output::Describe(id, uuid) => self.command(Some(id), Command::Describe(uuid)),
            Output::QueryDisks(id, query) => self.command(Some(id), Command::QueryDisks(query)),
            Output::ForgetDisks(vm) => self.slow.forget(vm.0),
            Output::SaveIndexes => {
                self.save_due.get_or_insert_with(|| Instant::now() + SAVE_DELAY);
            }
            Output::Reached(fence) => self.pass_on(fence),
        }
    }

    /// A fence comes back after the counting has done everything before it, too: then nothing uses what is freed.
    fn pass_on(&self, fence: Fence) {
        match fence {
            Fence::Counting(number) => self.count(counting::Command::Reached(number)),
            Fence::Procfs(number) => {
                if let Some(procfs) = self.source(None).cloned() {
                    self.after_counting(move || procfs.command(Command::Reached(number)));
                }
            }
            Fence::Owner(number) => {
                let reached = self.reached.clone();
                self.after_counting(move || {
                    // Full only when nothing waits for the fence.
                    let _ = reached.try_send(number);
                });
            }
        }
    }

    fn after_counting(&self, call: impl FnOnce() + Send + 'static) {
        match &self.outlets.counting {
            Some(_) => self.count(counting::Command::Then(Box::new(call))),
            None => call(),
        }
    }

    fn count(&self, command: counting::Command) {
        if let Some(counting) = &self.outlets.counting {
            // Fails only after the counting has panicked, which ends the agent.
            let _ = counting.send(command);
        }
    }

    fn command(&self, id: Option<SourceId>, command: Command) {
        if let Some(source) = self.source(id) {
            source.command(command);
        }
    }

    /// The source with this libvirt connection; with `None` that of processes.
    fn source(&self, id: Option<SourceId>) -> Option<&Arc<dyn Source>> {
        self.outlets.sources.iter().find(|source| source.connection().map(|(of, _)| of) == id)
    }
}

fn now() -> Now {
    Now { instant: Instant::now(), since_boot_ns: since_boot_ns() }
}

impl fmt::Debug for Outlets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outlets")
            .field("counting", &self.counting.is_some())
            .finish_non_exhaustive()
    }
}

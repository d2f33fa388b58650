//! The probe on threads of this process, in a room of its own: it neither finds nor leaves anything of an
//! agent that runs here.

use std::{
    fs, io,
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use anyhow::Context as _;
use aya::programs::links::{FdLink, PinnedLink};
use kvmeter::{
    counters::{Records, ThreadSlot, VmSlot},
    counting::{HeldThread, Registration, RunState, Schedstat, Tracker as _},
    probe::{KERNEL_BTF, Method, Probe, SCHED_HOOKS, Sizes},
};
use kvmeter_common::LAYOUT;

/// A live probe with this process as its only VM.
pub(crate) struct Tracked {
    pub(crate) records: Arc<Records>,
    pub(crate) vm: VmSlot,
    registration: Registration<Arc<Records>>,
    /// vCPUs so far.
    vcpus: AtomicU32,
    links: Vec<(&'static str, FdLink)>,
    _probe: Probe,
}

impl Tracked {
    /// Loads and attaches the programs. They end with this process, whatever ends it: nothing stays pinned.
    pub(crate) fn start() -> anyhow::Result<Self> {
        Self::with(&[])
    }

    /// The same with the programs that count images by these methods.
    pub(crate) fn with(methods: &[Method]) -> anyhow::Result<Self> {
        let pins = PinDir(format!("/sys/fs/bpf/kvmeter-bench-{}", process::id()).into());
        let mut probe = Probe::start(&pins.0, KERNEL_BTF.as_ref(), Sizes::default())?;
        probe.image_hooks.set_attached(|method| methods.contains(&method));
        let of_images = probe.image_hooks.states().into_iter();
        let of_images = of_images.filter(|state| state.failure.is_none()).map(|state| state.hook);
        let links = SCHED_HOOKS
            .into_iter()
            .chain(of_images)
            .map(|hook| {
                let pin = pins.0.join(format!("v{LAYOUT}/link_{}", hook.name));
                let link = PinnedLink::from_pin(&pin)
                    .with_context(|| format!("Cannot open {}", pin.display()))?;
                Ok((hook.name, link.into()))
            })
            .collect::<anyhow::Result<_>>()?;
        let records = Arc::new(Records::map(&probe)?);
        let registration = Registration::adopt(Arc::clone(&records));
        let vm = registration.track_vm(process::id())?;
        Ok(Self { records, vm, registration, vcpus: AtomicU32::new(0), links, _probe: probe })
    }

    /// Begins to count a thread of this process.
    pub(crate) fn track(&self, thread: &OwnThread) -> anyhow::Result<ThreadSlot> {
        self.track_as(thread, None)
    }

    /// Begins to count a thread of this process as that of a vCPU.
    pub(crate) fn track_vcpu(&self, thread: &OwnThread) -> anyhow::Result<ThreadSlot> {
        // A vCPU has one thread.
        self.track_as(thread, Some(self.vcpus.fetch_add(1, Relaxed)))
    }

    fn track_as(&self, thread: &OwnThread, vcpu: Option<u32>) -> anyhow::Result<ThreadSlot> {
        let slot = self.registration.track_thread(self.vm, thread, vcpu)?;
        // The benchmarks read the records, as of a VM every thread of which has one.
        let unrecorded = self.registration.unrecorded(self.vm);
        self.registration.settle(self.vm, &[thread], Some(unrecorded));
        Ok(slot)
    }

    /// The id of the program at that hook.
    pub(crate) fn program(&self, hook: &str) -> anyhow::Result<u32> {
        let link = self.links.iter().find(|(name, _)| *name == hook);
        let (_, link) = link.with_context(|| format!("Nothing is attached to {hook}"))?;
        Ok(link.info()?.program_id())
    }
}

/// The pins of a probe until this is dropped.
struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        // `Probe::detach` would end the counting, too.
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("Cannot remove {}: {error}", self.0.display());
        }
    }
}

/// A thread of this process that does not end while this is used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OwnThread(u32);

impl OwnThread {
    /// The first thread of this process.
    pub(crate) fn first() -> Self {
        Self(process::id())
    }

    /// The calling thread.
    pub(crate) fn current() -> Self {
        Self(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs())
    }

    /// Path of one of the thread's files in procfs.
    pub(crate) fn path(self, name: &str) -> String {
        format!("/proc/self/task/{}/{name}", self.0)
    }

    /// How often the thread got a CPU.
    pub(crate) fn switches_in(self) -> io::Result<u64> {
        field(&fs::read_to_string(self.path("schedstat"))?, 2)
    }
}

impl HeldThread for OwnThread {
    fn tid(&self) -> u32 {
        self.0
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        let text = fs::read_to_string(self.path("schedstat"))?;
        Ok(Schedstat { run_ns: field(&text, 0)?, wait_ns: field(&text, 1)? })
    }

    fn run_state(&self) -> io::Result<RunState> {
        let text = fs::read_to_string(self.path("stat"))?;
        let after_name = text.rsplit_once(") ").map_or("", |(_, fields)| fields);
        Ok(RunState { runnable: after_name.starts_with('R'), has_ended: false })
    }

    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
        let text = fs::read_to_string(self.path("stat"));
        Box::new(move || {
            let text = text.ok()?;
            field(text.rsplit_once(") ")?.1, 36).ok()
        })
    }
}

fn field<T: std::str::FromStr>(text: &str, number: usize) -> io::Result<T> {
    let field = text.split_whitespace().nth(number).and_then(|field| field.parse().ok());
    field.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text.to_owned()))
}

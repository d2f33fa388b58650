//! Threads of this process, held as the inventory holds those of VMs.

use std::{fs, io, path::Path, sync::Arc};

use anyhow::Context as _;
use kvmeter::{
    counters::{HeldThread, Records, Registration, RunState, Schedstat, Tracker as _, VmSlot},
    probe::{KERNEL_BTF, Probe},
};

/// The agent's own programs, with pins of their own.
pub(crate) struct Counting {
    pub(crate) records: Arc<Records>,
    pub(crate) registration: Registration<Arc<Records>>,
    pin_dir: String,
    _probe: Probe,
}

impl Counting {
    pub(crate) fn begin() -> anyhow::Result<Self> {
        let pin_dir = format!("/sys/fs/bpf/kvmeter-bench-{}", std::process::id());
        let probe = Probe::start(Path::new(&pin_dir), Path::new(KERNEL_BTF))?;
        let records = Arc::new(Records::map(&probe)?);
        let registration = Registration::adopt(Arc::clone(&records));
        Ok(Self { records, registration, pin_dir, _probe: probe })
    }

    /// Has all threads of this process counted, as if it were a VM.
    pub(crate) fn track_this_process(&self) -> anyhow::Result<VmSlot> {
        let vm = self.registration.track_vm(std::process::id())?;
        let threads = own_threads()?;
        for (id, thread) in (0..).zip(&threads) {
            self.registration.track_thread(vm, thread, Some(id))?;
        }
        let held: Vec<&dyn HeldThread> =
            threads.iter().map(|thread| thread as &dyn HeldThread).collect();
        self.registration.settle(vm, &held);
        Ok(vm)
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        if let Err(error) = Probe::detach(Path::new(&self.pin_dir)) {
            eprintln!("{} remains: {error}", self.pin_dir);
        }
    }
}

pub(crate) struct OwnThread(pub(crate) u32);

fn own_threads() -> anyhow::Result<Vec<OwnThread>> {
    let mut threads = Vec::new();
    for entry in fs::read_dir("/proc/self/task")? {
        let name = entry?.file_name();
        threads.push(OwnThread(name.to_str().context("no number")?.parse()?));
    }
    Ok(threads)
}

impl OwnThread {
    fn file(&self, name: &str) -> io::Result<String> {
        fs::read_to_string(format!("/proc/self/task/{}/{name}", self.0))
    }
}

impl HeldThread for OwnThread {
    fn tid(&self) -> u32 {
        self.0
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        let text = self.file("schedstat")?;
        let mut words = text.split_whitespace().map(|word| word.parse().map_err(io::Error::other));
        let mut next = || words.next().unwrap_or_else(|| Err(io::ErrorKind::InvalidData.into()));
        Ok(Schedstat { run_ns: next()?, wait_ns: next()? })
    }

    fn run_state(&self) -> io::Result<RunState> {
        let text = self.file("stat")?;
        let rest = text.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let cpu = fields.get(36).and_then(|cpu| cpu.parse().ok());
        let cpu = cpu.ok_or(io::ErrorKind::InvalidData)?;
        Ok(RunState { runnable: fields.first() == Some(&"R"), cpu })
    }
}

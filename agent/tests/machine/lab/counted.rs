//! Counts the image I/O of any process as if the process were a VM.

use std::{
    io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use kvmeter::{
    counters::{DiskIo, ImageSlot, Records, VmSlot},
    counting::{HeldThread, Registration, RunState, Schedstat, SelfTest, Tracker as _},
    inventory::FileIdentity,
    probe::{KERNEL_BTF, Method, Probe, Sizes},
};
use kvmeter_common::{ImageKey, LAYOUT};

use super::PinDir;

/// The main thread of a process, which lives as long as the process.
struct Leader(u32);

impl HeldThread for Leader {
    fn tid(&self) -> u32 {
        self.0
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        Ok(Schedstat { run_ns: 0, wait_ns: 0 })
    }

    fn run_state(&self) -> io::Result<RunState> {
        Ok(RunState { runnable: true, has_ended: false })
    }

    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
        Box::new(|| Some(0))
    }
}

/// A process that is counted as a VM.
pub(crate) struct Counted {
    pub(crate) records: Arc<Records>,
    pub(crate) registration: Registration<Arc<Records>>,
    pub(crate) probe: Probe,
    pub(crate) vm: VmSlot,
    pub(crate) pid: u32,
    pins: PinDir,
}

impl Counted {
    /// Counts this process by those of the methods that the kernel supports.
    pub(crate) fn by(methods: &[Method]) -> Self {
        Self::process(std::process::id(), methods)
    }

    /// Counts the process with this id.
    pub(crate) fn process(pid: u32, methods: &[Method]) -> Self {
        Self::in_pins(PinDir::new(), pid, methods)
    }

    /// Counts the same process by these methods with a new agent, which adopts what was counted.
    pub(crate) fn restart(self, methods: &[Method]) -> Self {
        let Self { probe, pid, pins, .. } = self;
        drop(probe);
        Self::in_pins(pins, pid, methods)
    }

    fn in_pins(pins: PinDir, pid: u32, methods: &[Method]) -> Self {
        let mut probe = Probe::start(pins.path(), Path::new(KERNEL_BTF), Sizes::default()).unwrap();
        let records = Arc::new(Records::map(&probe).unwrap());
        let mut self_test = SelfTest::new(Arc::clone(&records));
        for method in methods.iter().filter(|method| method.is_optional()) {
            probe.image_hooks.attach_for_test(*method, || self_test.run(*method));
        }
        drop(self_test);
        let registration = Registration::adopt(Arc::clone(&records));
        let vm = track(&registration, pid);
        probe.image_hooks.set_attached(|method| methods.contains(&method));
        for method in methods {
            match probe.image_hooks.availability(*method) {
                Ok(()) => println!("{method:?} counts"),
                Err(why) => {
                    println!("{method:?} does not: {}", &why[why.len().saturating_sub(300)..])
                }
            }
        }
        Self { records, registration, probe, vm, pid, pins }
    }

    /// Path of a pin.
    pub(crate) fn pin(&self, name: &str) -> PathBuf {
        self.pins.path().join(format!("v{LAYOUT}/{name}"))
    }

    /// Declares that the process has no other thread than its first one.
    pub(crate) fn has_all_threads(&self) {
        let unrecorded = self.registration.unrecorded(self.vm);
        self.registration.settle(self.vm, &[&Leader(self.pid)], Some(unrecorded));
    }

    /// Counts the process with this id instead, by the same methods.
    pub(crate) fn follow(&mut self, pid: u32) {
        self.registration.untrack_vm(self.vm);
        self.vm = track(&self.registration, pid);
        self.pid = pid;
    }

    pub(crate) fn key(&self, path: &Path) -> ImageKey {
        let found = path.metadata().unwrap();
        let (device, file) = if is_block_device(&found) {
            (found.rdev(), ImageKey::NO_FILE)
        } else {
            (found.dev(), found.ino())
        };
        let [major, minor] = [rustix::fs::major(device), rustix::fs::minor(device)];
        ImageKey { vm: self.vm.0, device: FileIdentity::kernel_device(major, minor), file }
    }

    pub(crate) fn slots(&self, path: &Path) -> Vec<ImageSlot> {
        self.records.images_of(self.key(path)).collect()
    }

    pub(crate) fn io(&self, path: &Path) -> DiskIo {
        self.records.image_io(&self.slots(path))
    }
}

fn track(registration: &Registration<Arc<Records>>, pid: u32) -> VmSlot {
    let vm = registration.track_vm(pid).unwrap();
    registration.track_thread(vm, &Leader(pid), None).unwrap();
    vm
}

fn is_block_device(found: &std::fs::Metadata) -> bool {
    found.file_type().is_block_device()
}

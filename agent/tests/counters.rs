//! The counters against the kernel's own, on threads of this very process.

mod lab;

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use kvmeter::{
    counters::{HeldThread, Readings as _, Records, Registration, RunState, Schedstat, Tracker as _},
    probe::{KERNEL_BTF, Probe},
};
use lab::PinDir;

/// A thread of this process, which outlives the test that names it.
struct OwnThread(u32);

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
        let mut words = text.split_whitespace().map(|word| word.parse().unwrap());
        Ok(Schedstat { run_ns: words.next().unwrap(), wait_ns: words.next().unwrap() })
    }

    fn run_state(&self) -> io::Result<RunState> {
        let text = self.file("stat")?;
        let fields: Vec<&str> = text[text.rfind(')').unwrap() + 2..].split(' ').collect();
        Ok(RunState { runnable: fields[0] == "R", cpu: fields[36].parse().unwrap() })
    }
}

fn own_tid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()
}

fn start(pins: &PinDir) -> (Arc<Records>, Registration<Arc<Records>>, Probe) {
    let probe = Probe::start(pins.path(), Path::new(KERNEL_BTF)).unwrap();
    let records = Arc::new(Records::map(&probe).unwrap());
    (Arc::clone(&records), Registration::adopt(records), probe)
}

/// A thread that burns CPU while `busy` is set and waits on a channel else.
struct Burner {
    tid: u32,
    busy: Arc<AtomicBool>,
    wake: mpsc::Sender<()>,
    handle: thread::JoinHandle<()>,
}

impl Burner {
    fn start() -> Self {
        let (tell, told) = mpsc::channel();
        let (wake, woken) = mpsc::channel();
        let busy = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&busy);
        let handle = thread::spawn(move || {
            tell.send(own_tid()).unwrap();
            while woken.recv().is_ok() {
                while flag.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            }
        });
        Self { tid: told.recv().unwrap(), busy, wake, handle }
    }

    fn burn(&self) {
        self.busy.store(true, Ordering::Relaxed);
        self.wake.send(()).unwrap();
    }

    /// Ends the burning and waits until the thread sleeps.
    fn rest(&self) {
        self.busy.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !fs::read_to_string(format!("/proc/self/task/{}/stat", self.tid)).unwrap().contains(") S ") {
            assert!(Instant::now() < deadline, "the thread does not come to rest");
            thread::yield_now();
        }
    }

    fn end(self) {
        drop(self.wake);
        self.handle.join().unwrap();
    }
}

#[test]
fn a_thread_at_rest_shows_exactly_what_the_kernel_shows() {
    require!("ebpf");
    let pins = PinDir::new();
    let (records, registration, _probe) = start(&pins);
    let burner = Burner::start();
    let held = OwnThread(burner.tid);
    let vm = registration.track_vm(std::process::id()).unwrap();
    let slot = registration.track_thread(vm, &held, Some(0)).unwrap();
    for _ in 0..20 {
        burner.burn();
        let until = Instant::now() + Duration::from_millis(7);
        while Instant::now() < until {
            records.vcpu_time_ns(slot);
        }
        burner.rest();
        let kernel = held.schedstat().unwrap();
        let ours = records.vcpu_time_ns(slot).unwrap();
        assert!(ours.abs_diff(kernel.run_ns) < 1000, "ours {ours}, the kernel's {}", kernel.run_ns);
        let wait = records.thread(slot).unwrap().wait_ns;
        assert!(wait.abs_diff(kernel.wait_ns) < 1000, "waited {wait}, the kernel's {}", kernel.wait_ns);
    }
    burner.end();
}

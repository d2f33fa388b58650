//! The hooks for disk I/O. They cost something at every I/O of the host, so they are loaded at start, while the agent
//! still holds `CAP_BPF`, and attached only while a disk needs them. Their links are pinned: counting outlives the agent.

use std::{
    error::Error,
    fmt, io,
    time::{Duration, Instant},
};

use aya::{Btf, Ebpf};
use kvmeter_common::Layer;
use nix::libc;
use tracing::{debug, info, warn};

use super::{
    Hook, HookState, Offsets, ProbeError, ftrace,
    hook::AttachPoint,
    pins::Pins,
    proof::{Proof, TestError},
    with_causes,
};

/// A method to count the I/O of a disk: the hooks that see it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Method {
    /// Direct I/O in iomap: files opened with `O_DIRECT`.
    Dio,
    /// System calls that read and write at a position, each hooked at its own function.
    Vfs,
    /// io_submit(2), hooked at its functions.
    Aio,
    /// The block layer: block devices opened with `O_DIRECT`.
    Bdev,
    /// System calls that read and write, hooked at the entry and exit of all calls.
    Syscall,
    /// io_uring.
    IoUring,
}

impl Method {
    /// All methods, by number.
    pub const ALL: [Self; 6] =
        [Self::Dio, Self::Vfs, Self::Aio, Self::Bdev, Self::Syscall, Self::IoUring];

    /// Name of the method in `kvmeter status`, JSON and the documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dio => "dio",
            Self::Bdev => "bdev",
            Self::Syscall => "syscall",
            Self::IoUring => "io_uring",
            Self::Vfs => "vfs",
            Self::Aio => "aio",
        }
    }

    /// Whether another method can do this one's work where the kernel does not support it.
    #[must_use]
    pub const fn is_optional(self) -> bool {
        matches!(self, Self::Vfs | Self::Aio)
    }

    /// Layer of the records of disks that are counted by this method alone.
    #[must_use]
    pub const fn layer(self) -> Layer {
        match self {
            Self::Dio => Layer::Direct,
            Self::Bdev => Layer::Block,
            Self::Syscall => Layer::Call,
            Self::Vfs | Self::Aio => Layer::Function,
            Self::IoUring => Layer::Ring,
        }
    }

    /// The hooks, completion first, in the order in which they are attached: a request whose submission was missed is not
    /// counted, but one whose completion was missed would stay in flight.
    pub(super) const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Dio => &DIO,
            Self::Bdev => &BDEV,
            Self::Syscall => &SYSCALL,
            Self::IoUring => &IO_URING,
            Self::Vfs => &VFS,
            Self::Aio => &AIO,
        }
    }

    const fn number(self) -> usize {
        self as usize
    }
}

/// Name of the kernel's function for a system call on this architecture.
macro_rules! call {
    ($name:literal) => {
        if cfg!(target_arch = "x86_64") {
            concat!("__x64_sys_", $name)
        } else {
            concat!("__arm64_sys_", $name)
        }
    };
}

const DIO: [Hook; 3] = [
    Hook::new("iomap_dio_complete", BY_DIO),
    second("iomap_dio_complete_too", "iomap_dio_complete", BY_DIO),
    Hook::new("iomap_dio_rw_begin", BY_DIO),
];
const BDEV: [Hook; 5] = [
    Hook::new("block_rq_complete", BY_BDEV),
    second("block_rq_complete_too", "block_rq_complete", BY_BDEV),
    Hook::new("block_bio_complete", BY_BDEV),
    second("block_bio_complete_too", "block_bio_complete", BY_BDEV),
    Hook::new("block_bio_queue", BY_BDEV),
];
const SYSCALL: [Hook; 2] = of("I/O of disks by system calls", ["sys_exit", "sys_enter"]);
const IO_URING: [Hook; 2] =
    of("I/O of disks by io_uring", ["io_uring_complete", "io_uring_submit_req"]);

const VFS: [Hook; 10] = [
    at_exit("pread64_exit", call!("pread64")),
    at_exit("preadv_exit", call!("preadv")),
    at_exit("pwrite64_exit", call!("pwrite64")),
    at_exit("pwritev_exit", call!("pwritev")),
    at_exit("pwritev2_exit", call!("pwritev2")),
    at_entry(BY_CALLS, "pread64_entry", call!("pread64")),
    at_entry(BY_CALLS, "preadv_entry", call!("preadv")),
    at_entry(BY_CALLS, "pwrite64_entry", call!("pwrite64")),
    at_entry(BY_CALLS, "pwritev_entry", call!("pwritev")),
    at_entry(BY_CALLS, "pwritev2_entry", call!("pwritev2")),
];
const AIO: [Hook; 4] = [
    at_entry(BY_AIO, "aio_complete_rw", "aio_complete_rw"),
    at_entry(BY_AIO, "aio_complete_rw_too", "aio_complete_rw"),
    at_entry(BY_AIO, "aio_read", "aio_read"),
    at_entry(BY_AIO, "aio_write", "aio_write"),
];

const BY_DIO: &str = "direct I/O of disks that are files";
const BY_BDEV: &str = "direct I/O of disks that are block devices";
const BY_CALLS: &str = "I/O of disks by positioned system calls";
const BY_AIO: &str = "I/O of disks by io_submit(2)";

/// A second copy of a program, for events in an interrupt that hits the first one.
const fn second(name: &'static str, tracepoint: &'static str, purpose: &'static str) -> Hook {
    Hook { attach_point: AttachPoint::Second(tracepoint), ..Hook::new(name, purpose) }
}

const fn at_entry(purpose: &'static str, name: &'static str, function: &'static str) -> Hook {
    Hook { attach_point: AttachPoint::Fentry(function), ..Hook::new(name, purpose) }
}

const fn at_exit(name: &'static str, function: &'static str) -> Hook {
    Hook { attach_point: AttachPoint::Fexit(function), ..Hook::new(name, BY_CALLS) }
}

const fn of<const N: usize>(purpose: &'static str, names: [&'static str; N]) -> [Hook; N] {
    let mut hooks = [Hook::new("", purpose); N];
    let mut at = 0;
    while at < N {
        hooks[at].name = names[at];
        at += 1;
    }
    hooks
}

/// Refusals as busy in a row, some 20 ms apart, that are believed: the kernel detaches with a delay. A kernel up to 5.19 answers
/// so for as long as ftrace is switched off.
const BUSY: u32 = 50;

const FTRACE_IS_OFF: &str = "ftrace is switched off (kernel.ftrace_enabled = 0)";

/// First pause before a method that has failed is tried again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The loaded programs, and which of them are attached.
pub struct ImageHooks {
    ebpf: Ebpf,
    pins: Pins,
    /// By the methods' numbers.
    states: [State; Method::ALL.len()],
    /// Refusals as busy in a row, by the methods' numbers.
    busy: [u32; Method::ALL.len()],
    /// The failure of each method that was logged last.
    logged: [Option<String>; Method::ALL.len()],
    /// What the self-tests have said, by the methods' numbers.
    proofs: [Proof; Method::ALL.len()],
    /// Methods that stayed attached because ftrace was switched off, by their numbers.
    kept: [bool; Method::ALL.len()],
    /// Whether a program at a function was attached since the last proof.
    has_unproved: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum State {
    Attached,
    /// Loaded and not attached.
    Idle,
    /// Cannot be used, for this reason.
    Failed(String),
    /// Cannot be used now, for this reason; is tried again.
    Down {
        why: String,
        /// When it is tried again; `None` = the next proof sets it.
        due: Option<Instant>,
        pause: Duration,
    },
}

impl State {
    fn down(why: String) -> Self {
        Self::Down { why, due: None, pause: FIRST_PAUSE }
    }
}

impl ImageHooks {
    /// Loads the programs. Methods that an earlier agent attached stay attached; if its programs were others (`is_same` is
    /// false), their links are replaced.
    pub(super) fn load(
        mut ebpf: Ebpf,
        btf: &Btf,
        pins: Pins,
        offsets: &Offsets,
        is_same: bool,
    ) -> Self {
        let states = Method::ALL.map(|method| {
            if let Some(missing_field) = offsets.missing_field() {
                return State::Failed(missing_field.to_owned());
            }
            for &hook in method.hooks() {
                if let Err(error) = hook.load(&mut ebpf, btf, offsets) {
                    return State::Failed(with_causes(&error));
                }
            }
            let is_pinned = |hook: &Hook| pins.has_link(hook.name);
            if method.hooks().iter().all(is_pinned) && is_same {
                State::Attached
            } else {
                State::Idle
            }
        });
        let mut hooks = Self {
            ebpf,
            pins,
            states,
            busy: [0; Method::ALL.len()],
            logged: Default::default(),
            proofs: Default::default(),
            kept: Default::default(),
            has_unproved: false,
        };
        for method in Method::ALL {
            if hooks.states[method.number()] == State::Attached {
                hooks.proofs[method.number()] = Proof::of_earlier_agent();
            }
        }
        for method in Method::ALL {
            let is_pinned = |hook: &Hook| hooks.pins.has_link(hook.name);
            if hooks.states[method.number()] != State::Attached
                && method.hooks().iter().any(is_pinned)
            {
                hooks.attach(method);
            }
        }
        hooks
    }

    /// Whether a method can be used on this kernel.
    ///
    /// # Errors
    ///
    /// The reason why not, as text.
    pub fn availability(&self, method: Method) -> Result<(), &str> {
        match &self.states[method.number()] {
            State::Failed(why) | State::Down { why, .. } => Err(why),
            State::Attached | State::Idle => Ok(()),
        }
    }

    /// Attaches a method, unless an earlier agent has, and runs its self-test. A method that fails, or that has never passed a
    /// test and cannot be tested, is tried again by [`prove`](Self::prove).
    pub fn attach_for_test(
        &mut self,
        method: Method,
        test: impl FnOnce() -> Result<(), TestError>,
    ) {
        if self.states[method.number()] == State::Idle {
            self.attach(method);
        }
        if self.states[method.number()] == State::Attached {
            self.test(method, test());
        }
    }

    /// Takes in the result of a test of an attached method. Returns whether the method can be used.
    fn test(&mut self, method: Method, result: Result<(), TestError>) -> bool {
        let result = self.proofs[method.number()].take(method, result, is_without_ftrace(method));
        if let Err(error) = &result {
            self.fail(method, error.to_string());
        }
        result.is_ok()
    }

    /// Tests the attached methods: ftrace may be switched off, a function be patched, a pin be removed. Tries methods again
    /// that failed before. Returns whether another set of methods can be used now.
    pub fn prove(
        &mut self,
        now: Instant,
        mut test: impl FnMut(Method) -> Result<(), TestError>,
    ) -> bool {
        let mut has_changed = false;
        self.has_unproved = false;
        for method in Method::ALL {
            match self.states[method.number()].clone() {
                State::Attached => has_changed |= self.prove_attached(method, &mut test),
                State::Down { why, due: None, pause } => {
                    let due = Some(now + pause);
                    self.states[method.number()] = State::Down { why, due, pause };
                }
                State::Down { why, due: Some(due), .. }
                    if due <= now && is_without_ftrace(method) =>
                {
                    let due = Some(now + FIRST_PAUSE);
                    self.states[method.number()] = State::Down { why, due, pause: FIRST_PAUSE };
                }
                State::Down { why, due: Some(due), pause } if due <= now => {
                    let was_kept = std::mem::take(&mut self.kept[method.number()]);
                    self.states[method.number()] =
                        if was_kept { State::Attached } else { State::Idle };
                    self.attach_for_test(method, || tested(method, &mut test));
                    if self.states[method.number()] == State::Attached {
                        info!(method = method.name(), "works again");
                        self.logged[method.number()] = None;
                        has_changed = true;
                    } else {
                        let (why, pause) = match &self.states[method.number()] {
                            State::Failed(why) | State::Down { why, .. } => {
                                (why.clone(), self.proofs[method.number()].next_pause(pause))
                            }
                            // The kernel has not removed the previous link yet.
                            State::Attached | State::Idle => (why, FIRST_PAUSE),
                        };
                        let due = Some(now + pause);
                        self.states[method.number()] = State::Down { why, due, pause };
                    }
                }
                _ => {}
            }
        }
        has_changed
    }

    /// When the next proof has something to do. `interval` is the time between two tests of a program that is attached. `None` =
    /// never: a program at a tracepoint cannot fall silent.
    #[must_use]
    pub fn next_proof(&self, now: Instant, interval: Duration) -> Option<Instant> {
        let due = |(state, method): (&State, Method)| match state {
            State::Attached if method.is_optional() => Some(now + interval),
            State::Down { due, .. } => Some(due.unwrap_or(now)),
            _ => None,
        };
        self.states.iter().zip(Method::ALL).filter_map(due).min()
    }

    /// Whether a proof should be made at once.
    #[must_use]
    pub const fn has_unproved(&self) -> bool {
        self.has_unproved
    }

    fn prove_attached(
        &mut self,
        method: Method,
        test: &mut impl FnMut(Method) -> Result<(), TestError>,
    ) -> bool {
        if let Some(hook) = method.hooks().iter().find(|hook| !self.pins.is_there(hook.name))
            && !is_without_ftrace(method)
        {
            warn!(
                method = method.name(),
                hook = hook.name,
                "its pin was removed; it is attached again"
            );
            self.detach(method);
            return true;
        }
        !self.test(method, tested(method, test))
    }

    /// Detaches a method that does not work now.
    fn fail(&mut self, method: Method, why: String) {
        let why = if is_without_ftrace(method) { format!("{why}; {FTRACE_IS_OFF}") } else { why };
        if self.logged[method.number()].as_ref() != Some(&why) {
            warn!(method = method.name(), "disks are not counted by this method: {why}");
            self.logged[method.number()] = Some(why.clone());
        }
        if self.states[method.number()] == State::Attached {
            self.detach(method);
        }
        self.states[method.number()] = State::down(why);
    }

    /// Detaches a method, and makes `why` the reason for which it cannot be used.
    pub fn disable(&mut self, method: Method, why: &str) {
        if self.states[method.number()] == State::Attached {
            self.detach(method);
        }
        self.states[method.number()] = State::Failed(why.to_owned());
    }

    /// Attaches the needed methods and detaches the others. Returns whether every needed method that can be used is
    /// attached; if not, a later call may succeed.
    pub fn set_attached(&mut self, is_needed: impl Fn(Method) -> bool) -> bool {
        let mut works = true;
        for method in Method::ALL {
            match (&self.states[method.number()], is_needed(method)) {
                (State::Idle, true) => {
                    self.attach(method);
                    works &= self.states[method.number()] == State::Attached;
                }
                (State::Attached, false) => self.detach(method),
                _ => {}
            }
        }
        works
    }

    /// State of each hook.
    #[must_use]
    pub fn states(&self) -> Vec<HookState> {
        let of = |method: Method| {
            let failure = match &self.states[method.number()] {
                State::Attached => None,
                State::Idle => Some("no disk needs it".to_owned()),
                State::Failed(why) | State::Down { why, .. } => Some(why.clone()),
            };
            let state = move |&hook: &Hook| {
                let method = Some(method);
                HookState { hook, method, failure: failure.clone() }
            };
            method.hooks().iter().map(state)
        };
        Method::ALL.into_iter().flat_map(of).collect()
    }

    fn attach(&mut self, method: Method) {
        if is_without_ftrace(method) {
            self.states[method.number()] = State::down(FTRACE_IS_OFF.to_owned());
            return;
        }
        self.kept[method.number()] = false;
        let Self { ebpf, pins, .. } = self;
        let mut attached = method.hooks().iter().map(|hook| hook.attach(ebpf, pins));
        match attached.find_map(Result::err) {
            None => {
                debug!(method = method.name(), "attached");
                self.busy[method.number()] = 0;
                self.has_unproved |= method.is_optional();
                self.states[method.number()] = State::Attached;
            }
            // The kernel detaches with a delay: the previous link may still be there.
            Some(error) if is_busy(&error) && self.busy[method.number()] < BUSY => {
                self.busy[method.number()] += 1;
                self.detach(method);
            }
            Some(error) => {
                self.busy[method.number()] = 0;
                self.detach(method);
                self.fail(method, with_causes(&error));
            }
        }
    }

    fn detach(&mut self, method: Method) {
        if is_without_ftrace(method) {
            self.kept[method.number()] = true;
            return;
        }
        // Submission first, which was attached last.
        for hook in method.hooks().iter().rev() {
            if let Err(error) = self.pins.remove_link(hook.name) {
                warn!(hook = hook.name, "the hook stays attached: {}", with_causes(&error));
                return;
            }
        }
        debug!(method = method.name(), "detached");
        self.kept[method.number()] = false;
        self.states[method.number()] = State::Idle;
    }
}

/// Whether the method's programs are at functions, and ftrace is switched off.
fn is_without_ftrace(method: Method) -> bool {
    method.is_optional() && ftrace::is_off()
}

/// Only programs at functions of the kernel can be silent while they are attached.
fn tested(
    method: Method,
    test: &mut impl FnMut(Method) -> Result<(), TestError>,
) -> Result<(), TestError> {
    if method.is_optional() { test(method) } else { Ok(()) }
}

fn is_busy(error: &ProbeError) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST));
        }
        cause = error.source();
    }
    false
}

impl fmt::Debug for ImageHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageHooks").field("states", &self.states).finish_non_exhaustive()
    }
}

//! The hooks of images, which cost something wherever the host does I/O: loaded at the start, while the agent may, and
//! attached only as long as an image needs them. Their links are pinned, so that counting outlives the agent.

use std::fmt;

use aya::{Btf, Ebpf};
use kvmeter_common::Route;
use tracing::{debug, warn};

use super::{Hook, HookState, attach, load, pins::Pins, program, with_causes};

/// A way to count an image.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Method {
    /// iomap's direct I/O: files that are opened with `O_DIRECT`.
    Dio,
    /// The block layer: block devices that are opened with `O_DIRECT`.
    Bdev,
    /// System calls that read and write.
    Syscall,
    /// Requests of io_uring.
    IoUring,
}

impl Method {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Dio, Self::Bdev, Self::Syscall, Self::IoUring];

    /// What it is called in the status.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dio => "dio",
            Self::Bdev => "bdev",
            Self::Syscall => "syscall",
            Self::IoUring => "io_uring",
        }
    }

    /// Which records it fills.
    #[must_use]
    pub const fn route(self) -> Route {
        match self {
            Self::Dio => Route::Direct,
            Self::Bdev => Route::Block,
            Self::Syscall | Self::IoUring => Route::Call,
        }
    }

    /// Its hooks. The end of requests comes first: a request whose beginning was not seen is not counted, but one
    /// whose end was not seen would stay under way.
    pub(super) const fn hooks(self) -> &'static [Hook] {
        match self {
            Self::Dio => &DIO,
            Self::Bdev => &BDEV,
            Self::Syscall => &SYSCALL,
            Self::IoUring => &IO_URING,
        }
    }

    const fn number(self) -> usize {
        self as usize
    }
}

const DIO: [Hook; 2] =
    of("I/O of files past the page cache", ["iomap_dio_complete", "iomap_dio_rw_begin"]);
const BDEV: [Hook; 3] =
    of("I/O of block devices", ["block_rq_complete", "block_bio_complete", "block_bio_queue"]);
const SYSCALL: [Hook; 2] = of("I/O by the page cache", ["sys_exit", "sys_enter"]);
const IO_URING: [Hook; 2] =
    of("I/O by the page cache with io_uring", ["io_uring_complete", "io_uring_submit_req"]);

const fn of<const N: usize>(purpose: &'static str, names: [&'static str; N]) -> [Hook; N] {
    let mut hooks = [Hook::new("", purpose); N];
    let mut at = 0;
    while at < N {
        hooks[at].name = names[at];
        at += 1;
    }
    hooks
}

/// The programs, and which are attached.
pub struct ImageHooks {
    ebpf: Ebpf,
    pins: Pins,
    /// By the numbers of the methods.
    states: [State; Method::ALL.len()],
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum State {
    Attached,
    /// Nobody needs it.
    Idle,
    /// Why it does not work here.
    Failed(String),
}

impl ImageHooks {
    /// Loads the programs. What an earlier agent attached stays attached; where that had other programs (`is_same` is
    /// false) these take their place.
    pub(super) fn load(
        mut ebpf: Ebpf,
        btf: &Btf,
        pins: Pins,
        lacks: Option<&str>,
        is_same: bool,
    ) -> Self {
        let states = Method::ALL.map(|method| {
            if let Some(lacks) = lacks {
                return State::Failed(lacks.to_owned());
            }
            for &hook in method.hooks() {
                if let Err(error) = load(&mut ebpf, hook, btf) {
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
        let mut hooks = Self { ebpf, pins, states };
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

    /// Whether a method works on this kernel; else why not.
    ///
    /// # Errors
    ///
    /// The reason, for people.
    pub fn can(&self, method: Method) -> Result<(), &str> {
        match &self.states[method.number()] {
            State::Failed(why) => Err(why),
            State::Attached | State::Idle => Ok(()),
        }
    }

    /// Keeps a method from being used, for this reason.
    pub fn forbid(&mut self, method: Method, why: &str) {
        if self.states[method.number()] == State::Attached {
            self.detach(method);
        }
        self.states[method.number()] = State::Failed(why.to_owned());
    }

    /// Has these methods attached and no others. Whether all that were to be attached are.
    pub fn need(&mut self, is_needed: impl Fn(Method) -> bool) -> bool {
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

    /// Each hook and whether it is live.
    #[must_use]
    pub fn states(&self) -> Vec<HookState> {
        let of = |method: Method| {
            let failure = match &self.states[method.number()] {
                State::Attached => None,
                State::Idle => Some("no disk needs it".to_owned()),
                State::Failed(why) => Some(why.clone()),
            };
            method.hooks().iter().map(move |&hook| HookState { hook, failure: failure.clone() })
        };
        Method::ALL.into_iter().flat_map(of).collect()
    }

    fn attach(&mut self, method: Method) {
        let Self { ebpf, pins, states } = self;
        let mut attached = method.hooks().iter().map(|hook| {
            let program = program(ebpf, hook.name)?;
            attach(program, hook.name, pins)
        });
        match attached.find_map(Result::err) {
            None => {
                debug!(method = method.name(), "attached");
                states[method.number()] = State::Attached;
            }
            Some(error) => {
                self.detach(method);
                let why = with_causes(&error);
                warn!(method = method.name(), "disks are not counted in this way: {why}");
                self.states[method.number()] = State::Failed(why);
            }
        }
    }

    fn detach(&mut self, method: Method) {
        // The beginning of requests first, as it was attached last.
        for hook in method.hooks().iter().rev() {
            if let Err(error) = self.pins.remove_link(hook.name) {
                warn!(hook = hook.name, "it stays attached: {}", with_causes(&error));
                return;
            }
        }
        debug!(method = method.name(), "detached");
        self.states[method.number()] = State::Idle;
    }
}

impl fmt::Debug for ImageHooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageHooks").field("states", &self.states).finish_non_exhaustive()
    }
}

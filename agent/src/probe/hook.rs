//! Hooks: the programs and the points in the kernel to which they are attached.

use aya::{
    Btf, Ebpf,
    programs::{Program, links::FdLink},
};

use super::{Method, Offsets, ProbeError, pins::Pins};

/// A program, its attach point, and what is lost without it.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program. A program at a tracepoint has the tracepoint's name.
    pub name: &'static str,
    /// Where the program is attached.
    pub(super) attach_point: AttachPoint,
    /// Whether nothing can be counted without the hook.
    pub required: bool,
    /// What the hook is for, as text.
    pub purpose: &'static str,
}

/// The hooks for CPU time, which are always attached, in this order: the exit hook comes first, because a record may be
/// used only once its thread's end is seen.
pub const SCHED_HOOKS: [Hook; 7] = [
    Hook::new("sched_process_exit", "end of threads and VMs").required(),
    Hook::new("sched_switch", "CPU time").required(),
    Hook::new("task_newtask", "threads that VMs start"),
    Hook::new("sched_wakeup", "run-queue wait"),
    Hook::new("hrtimer_expire_exit", "CPU time of threads that keep their CPU"),
    Hook::new("sched_process_exec", "start of QEMU without KVM"),
    Hook::new("cgroup_attach_task", "I/O that a limit of a cgroup delays"),
];

impl Hook {
    pub(super) const fn new(name: &'static str, purpose: &'static str) -> Self {
        Self { name, attach_point: AttachPoint::Tracepoint, required: false, purpose }
    }

    const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Loads the program: the verifier checks it.
    pub(super) fn load(
        self,
        ebpf: &mut Ebpf,
        btf: &Btf,
        offsets: &Offsets,
    ) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::hook(self.name, source);
        match (self.attach_point, self.program(ebpf)?) {
            (AttachPoint::Tracepoint, Program::BtfTracePoint(program)) => {
                program.load(offsets.tracepoint(self.name), btf)
            }
            (AttachPoint::Second(tracepoint), Program::BtfTracePoint(program)) => {
                program.load(tracepoint, btf)
            }
            (AttachPoint::Fentry(function), Program::FEntry(program)) => {
                program.load(function, btf)
            }
            (AttachPoint::Fexit(function), Program::FExit(program)) => program.load(function, btf),
            _ => return Err(ProbeError::NoProgram { name: self.name }),
        }
        .map_err(failed)
    }

    /// Attaches the loaded program and pins the link.
    pub(super) fn attach(self, ebpf: &mut Ebpf, pins: &Pins) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::hook(self.name, source);
        let link: FdLink = match self.program(ebpf)? {
            Program::BtfTracePoint(program) => {
                program.attach().and_then(|id| program.take_link(id)).map_err(failed)?.into()
            }
            Program::FEntry(program) => {
                program.attach().and_then(|id| program.take_link(id)).map_err(failed)?.into()
            }
            Program::FExit(program) => {
                program.attach().and_then(|id| program.take_link(id)).map_err(failed)?.into()
            }
            _ => return Err(ProbeError::NoProgram { name: self.name }),
        };
        pins.replace_link(self.name, link)
    }

    fn program(self, ebpf: &mut Ebpf) -> Result<&mut Program, ProbeError> {
        ebpf.program_mut(self.name).ok_or(ProbeError::NoProgram { name: self.name })
    }
}

/// The point in the kernel at which a program runs.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachPoint {
    /// The tracepoint with the program's name.
    Tracepoint,
    /// A tracepoint that has a program with its name, too.
    Second(&'static str),
    /// Entry of a function.
    Fentry(&'static str),
    /// Exit of a function.
    Fexit(&'static str),
}

/// Whether a hook is live.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// The method that the hook belongs to; `None`: a hook for CPU time.
    pub method: Option<Method>,
    /// Why the hook is not live; `None`: it is.
    pub failure: Option<String>,
}

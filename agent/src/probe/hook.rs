//! The places in the kernel to which programs are attached.

use aya::{
    Btf, Ebpf,
    programs::{Program, links::FdLink},
};

use super::{Method, Offsets, ProbeError, pins::Pins};

/// A place in the kernel that a program is attached to, and what is lost without it.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    /// Name of the program. That of one at a tracepoint is the tracepoint's.
    pub name: &'static str,
    /// Where it is.
    pub(super) attach_point: AttachPoint,
    /// Whether nothing can be counted without it.
    pub required: bool,
    /// What it is for.
    pub purpose: &'static str,
}

/// The hooks, in the order in which they are attached: a thread's end must be seen before its record is
/// used.
pub const SCHED_HOOKS: [Hook; 5] = [
    Hook::new("sched_process_exit", "end of threads and VMs").required(),
    Hook::new("sched_switch", "CPU time").required(),
    Hook::new("sched_process_fork", "threads that VMs start"),
    Hook::new("sched_wakeup", "run-queue wait"),
    Hook::new("sched_process_exec", "start of QEMU without KVM"),
];

impl Hook {
    pub(super) const fn new(name: &'static str, purpose: &'static str) -> Self {
        Self { name, attach_point: AttachPoint::Tracepoint, required: false, purpose }
    }

    const fn required(self) -> Self {
        Self { required: true, ..self }
    }

    /// Has the kernel check its program.
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
            (AttachPoint::Fentry(function), Program::FEntry(program)) => {
                program.load(function, btf)
            }
            (AttachPoint::Fexit(function), Program::FExit(program)) => program.load(function, btf),
            _ => return Err(ProbeError::NoProgram { name: self.name }),
        }
        .map_err(failed)
    }

    /// Attaches its program, which is loaded, and pins the link.
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

/// Where in the kernel.
#[derive(Clone, Copy, Debug)]
pub(super) enum AttachPoint {
    /// A tracepoint.
    Tracepoint,
    /// The beginning of a function.
    Fentry(&'static str),
    /// The end of one.
    Fexit(&'static str),
}

/// What became of a hook.
#[derive(Clone, Debug)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// Which way to count images it belongs to; `None` = it is always there.
    pub method: Option<Method>,
    /// Why it is not live; `None` = it is.
    pub failure: Option<String>,
}

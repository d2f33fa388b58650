//! What the agent knows of the running kernel when it loads the programs, frozen: to the verifier these are
//! constants, and what they rule out is no code.

use aya_ebpf::Global;

/// 1 where `sched_switch` tells the state of the task that leaves the CPU (Linux 5.18), else 0.
#[unsafe(no_mangle)]
pub(crate) static SWITCH_HAS_STATE: Global<u64> = Global::new(0);

/// 1 where tasks have preemption notifiers: in kernels that are built with KVM.
#[unsafe(no_mangle)]
pub(crate) static HAS_PREEMPT_NOTIFIERS: Global<u64> = Global::new(0);

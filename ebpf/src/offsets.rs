//! Where the running kernel keeps what is read: octet offsets that the agent takes from the kernel's BTF
//! and freezes before it loads the programs. To the verifier they are constants, so that each read is
//! a plain load from a typed pointer.

use aya_ebpf::Global;

#[unsafe(no_mangle)]
pub(crate) static TASK_PID: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_TGID: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_COMM: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_STATE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_START_TIME: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_SUM_EXEC_RUNTIME: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_RUN_DELAY: Global<u64> = Global::new(0);
/// `u64::MAX` where the kernel is built without KVM.
#[unsafe(no_mangle)]
pub(crate) static TASK_PREEMPT_NOTIFIERS: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static TASK_SIGNAL: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_LIVE: Global<u64> = Global::new(0);
#[unsafe(no_mangle)]
pub(crate) static SIGNAL_SUM_SCHED_RUNTIME: Global<u64> = Global::new(0);

/// 1 where `sched_switch` tells the state of the task that leaves the CPU (Linux 5.18), else 0.
#[unsafe(no_mangle)]
pub(crate) static SWITCH_HAS_STATE: Global<u64> = Global::new(0);

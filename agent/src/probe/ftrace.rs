//! Whether ftrace, with which the kernel calls programs at functions, is switched on.

use std::fs;

/// Whether the kernel does not call programs at functions for now (`kernel.ftrace_enabled`, ftrace_enable_sysctl() of the
/// kernel's ftrace.c).
///
/// Such a program must neither be attached nor detached then: the kernel does not change the code of the function, but forgets that
/// it should, finds the code in an unexpected state after ftrace was switched on, and switches ftrace off until the next boot (seen
/// with Linux 6.12).
pub(crate) fn is_off() -> bool {
    fs::read("/proc/sys/kernel/ftrace_enabled").is_ok_and(|enabled| enabled.trim_ascii() == b"0")
}

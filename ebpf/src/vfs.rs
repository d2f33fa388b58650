//! The system calls that read and write at a position, each hooked at its own function:
//! `long __x64_sys_pread64(const struct pt_regs *regs)` and the like. Other calls are not slowed down.

use aya_ebpf::{
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use kvmeter_common::Layer;

use crate::call::{begin_call, end_call};

/// Two programs for a call: at the entry of its function and at the exit.
macro_rules! call {
    ($entry:ident, $exit:ident, write: $is_write:literal) => {
        #[fentry]
        fn $entry(ctx: FEntryContext) -> i32 {
            begin_call(ctx.arg(0), Layer::Function, $is_write, true);
            0
        }

        #[fexit]
        fn $exit(ctx: FExitContext) -> i32 {
            // The result follows the function's only argument.
            end_call(ctx.arg(1));
            0
        }
    };
}

call!(pread64_entry, pread64_exit, write: false);
call!(preadv_entry, preadv_exit, write: false);
call!(pwrite64_entry, pwrite64_exit, write: true);
call!(pwritev_entry, pwritev_exit, write: true);
call!(pwritev2_entry, pwritev2_exit, write: true);

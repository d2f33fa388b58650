//! kvmeter's BPF programs, one file a hook or a family of them. Each does a bounded amount of work and keeps no policy.
//!
//! Reading order: `maps`, `kernel`, `task`, `thread`, `image`, `request`, `call`, then the hooks.
//!
//! On any target but BPF this is an empty program, so that the whole workspace can be checked.

#![cfg_attr(
    target_arch = "bpf",
    no_std,
    no_main,
    feature(asm_experimental_arch, core_intrinsics),
    expect(
        internal_features,
        reason = "the BPF target has atomic instructions but core::sync::atomic does not offer them there"
    )
)]
#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "maps, kernel memory and atomics are reached by raw pointers")
)]

#[cfg(target_arch = "bpf")]
mod aio;
#[cfg(target_arch = "bpf")]
mod atomic;
#[cfg(target_arch = "bpf")]
mod block_bio_complete;
#[cfg(target_arch = "bpf")]
mod block_bio_queue;
#[cfg(target_arch = "bpf")]
mod block_rq_complete;
#[cfg(target_arch = "bpf")]
mod call;
#[cfg(target_arch = "bpf")]
mod image;
#[cfg(target_arch = "bpf")]
mod io_uring_complete;
#[cfg(target_arch = "bpf")]
mod io_uring_submit_req;
#[cfg(target_arch = "bpf")]
mod iomap_dio_complete;
#[cfg(target_arch = "bpf")]
mod iomap_dio_rw_begin;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod request;
#[cfg(target_arch = "bpf")]
mod sched_process_exec;
#[cfg(target_arch = "bpf")]
mod sched_process_exit;
#[cfg(target_arch = "bpf")]
mod sched_process_fork;
#[cfg(target_arch = "bpf")]
mod sched_switch;
#[cfg(target_arch = "bpf")]
mod sched_wakeup;
#[cfg(target_arch = "bpf")]
mod sys_enter;
#[cfg(target_arch = "bpf")]
mod sys_exit;
#[cfg(target_arch = "bpf")]
mod task;
#[cfg(target_arch = "bpf")]
mod thread;
#[cfg(target_arch = "bpf")]
mod vfs;

/// What the kernel reads to allow GPL-only helpers.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

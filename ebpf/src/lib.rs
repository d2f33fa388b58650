//! kvmeter's BPF programs, one file a hook or a family of hooks. Each does a bounded amount of work and keeps no policy.
//!
//! Reading order: `maps`, `kernel`, `memory`, `task`, `thread`, `image`, `cgroup`, `request`, `call`, then the hooks.
//!
//! The programs run in the kernel only. On the host the crate is checked, linted and documented; what only the BPF
//! target has (`atomic`, `memory`, `verifier`) has a host twin there.

#![no_std]
#![expect(
    clippy::needless_pass_by_value,
    reason = "the macros of aya-ebpf pass a program its context by value"
)]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    expect(
        internal_features,
        reason = "the BPF target has atomic instructions, but core::sync::atomic does not offer them there"
    )
)]

pub mod aio;
mod atomic;
pub mod block_bio_complete;
pub mod block_bio_queue;
pub mod block_rq_complete;
mod call;
mod cgroup;
pub mod cgroup_attach_task;
pub mod hrtimer_expire_exit;
mod image;
pub mod io_uring_complete;
pub mod io_uring_submit_req;
pub mod iomap_dio_complete;
pub mod iomap_dio_rw_begin;
mod kernel;
mod maps;
mod memory;
mod request;
pub mod sched_process_exec;
pub mod sched_process_exit;
pub mod sched_switch;
pub mod sched_wakeup;
pub mod sys_enter;
pub mod sys_exit;
mod task;
pub mod task_newtask;
mod thread;
mod vcpu;
mod verifier;
pub mod vfs;

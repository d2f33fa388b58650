//! Requests that never complete.
#![expect(unsafe_code, reason = "the rings of io_uring are memory that the kernel shares")]

use std::{
    env,
    os::fd::AsRawFd as _,
    ptr,
    sync::atomic::{AtomicU32, Ordering::Release},
};

use memmap2::{MmapOptions, MmapRaw};
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp, IoringSetupFlags,
    io_uring_enter, io_uring_params, io_uring_ptr, io_uring_setup, io_uring_sqe,
};

use super::wait;

/// Entries of the ring, which are submitted again and again.
const ENTRIES: u32 = 4096;

/// Most completions that the kernel allows a ring.
const COMPLETIONS: u32 = 65_536;

/// Submits many reads of a pipe into which nothing is written.
pub(crate) fn never_complete() -> anyhow::Result<()> {
    let count: u32 = env::var("ATTACK_COUNT")?.parse()?;
    let (empty, _writer) = std::io::pipe()?;
    let mut params = io_uring_params::default();
    params.flags = IoringSetupFlags::CQSIZE;
    params.cq_entries = COMPLETIONS;
    // SAFETY: the parameters name no descriptor of another ring.
    let ring = unsafe { io_uring_setup(ENTRIES, &mut params) }?;
    let map = |offset, len: usize| -> std::io::Result<MmapRaw> {
        MmapOptions::new().offset(offset).len(len).map_raw(&ring)
    };
    let entries = usize::try_from(params.sq_entries)?;
    let array = usize::try_from(params.sq_off.array)?;
    let queue = map(IORING_OFF_SQ_RING, array + entries * size_of::<u32>())?;
    let requests = map(IORING_OFF_SQES, entries * size_of::<io_uring_sqe>())?;
    let mut buffer = [0_u8; 1];
    let mut read =
        io_uring_sqe { opcode: IoringOp::Read, fd: empty.as_raw_fd(), ..Default::default() };
    read.addr_or_splice_off_in.addr = io_uring_ptr::new(ptr::from_mut(&mut buffer).cast());
    read.len.len = 1;
    for number in 0..params.sq_entries {
        let at = usize::try_from(number)?;
        // SAFETY: the kernel has made both areas for this number of entries, and reads them when they are submitted.
        unsafe {
            requests.as_mut_ptr().cast::<io_uring_sqe>().add(at).write(read);
            queue.as_mut_ptr().add(array).cast::<u32>().add(at).write(number);
        }
    }
    let mut submitted = 0;
    while submitted < count {
        // SAFETY: the kernel has put the tail, an aligned word, at this place of the area.
        let tail = unsafe {
            let at = queue.as_mut_ptr().add(usize::try_from(params.sq_off.tail)?);
            &*at.cast::<AtomicU32>()
        };
        tail.fetch_add(params.sq_entries, Release);
        // SAFETY: the buffer lives as long as this process waits below; nothing is ever read into it.
        let accepted =
            unsafe { io_uring_enter(&ring, params.sq_entries, 0, IoringEnterFlags::empty()) }?;
        if accepted == 0 {
            break;
        }
        submitted += accepted;
    }
    wait()
}

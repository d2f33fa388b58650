//! Tests whether programs at kernel functions see the requests that they are attached for. A compiler may have inlined
//! such a function, and a kernel may call another one. The agent makes requests itself and counts them as those of a VM.

#![expect(unsafe_code, reason = "no library makes io_submit(2) requests")]

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    ptr,
    sync::Arc,
};

use kvmeter_common::ImageKey;
use nix::libc;
use rustix::{
    fs::{AtFlags, MemfdFlags, StatxFlags, memfd_create, statx},
    io::{ReadWriteFlags, preadv, pwritev, pwritev2},
};

use super::{HeldThread, Registration, RunState, Schedstat, TrackError, Tracker as _};
use crate::{
    counters::{DiskIo, Records},
    inventory::FileIdentity,
    probe::Method,
};

/// Length of a request in bytes.
const LEN: usize = 512;

/// The main thread of this process, which lives as long as the process.
struct Leader;

impl HeldThread for Leader {
    fn tid(&self) -> u32 {
        std::process::id()
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        Ok(Schedstat { run_ns: 0, wait_ns: 0 })
    }

    fn run_state(&self) -> io::Result<RunState> {
        Ok(RunState { runnable: true, cpu: 0, is_real_time: false, has_ended: false })
    }
}

/// Makes a request of each kind that `method`, which must be attached, has to see, and checks the counts. Must be called
/// before anything else registers VMs in these records.
///
/// # Errors
///
/// What was not counted, for people.
pub fn self_test(records: &Arc<Records>, method: Method) -> Result<(), String> {
    let registration = Registration::adopt(Arc::clone(records));
    let failed = |error: TrackError| format!("it cannot be tested: {error}");
    let vm = registration.track_vm(std::process::id()).map_err(failed)?;
    let tested = registration.track_thread(vm, &Leader, None).map_err(failed).and_then(|_| {
        let file = file().map_err(|error| format!("it cannot be tested: {error}"))?;
        let found = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::INO);
        let found = found.map_err(|error| format!("it cannot be tested: {error}"))?;
        let device = FileIdentity::kernel_device(found.stx_dev_major, found.stx_dev_minor);
        let key = ImageKey { vm: vm.0, device, file: found.stx_ino };
        // Other methods do not count in a record of this layer.
        let claimed = records.claim_image(key, method.layer());
        claimed.ok_or("it cannot be tested: no record is free")?;
        let expected = match method {
            Method::Aio => by_aio(&file),
            _ => by_calls(&file),
        };
        let expected = expected.map_err(|error| format!("a request to test it failed: {error}"))?;
        let seen = records.image_io(&records.images_of(key).collect::<Vec<_>>());
        let numbers = |io: DiskIo| [io.reads, io.writes, io.read_octets, io.write_octets];
        if numbers(seen) == expected {
            Ok(())
        } else {
            Err(format!("of {expected:?} reads, writes and their bytes it saw {:?}", numbers(seen)))
        }
    });
    registration.untrack_vm(vm);
    tested
}

/// A file in memory.
fn file() -> io::Result<File> {
    let file = File::from(memfd_create("kvmeter", MemfdFlags::CLOEXEC)?);
    file.set_len(LEN as u64)?;
    Ok(file)
}

/// Makes one request with each system call. Returns the number of reads and of writes, and of bytes read and written.
fn by_calls(file: &File) -> io::Result<[u64; 4]> {
    let mut buffer = [0; LEN];
    file.read_exact_at(&mut buffer, 0)?;
    let read = preadv(file, &mut [IoSliceMut::new(&mut buffer)], 0)?;
    file.write_all_at(&buffer, 0)?;
    let slices = [IoSlice::new(&buffer)];
    let written = pwritev(file, &slices, 0)? + pwritev2(file, &slices, 0, ReadWriteFlags::DSYNC)?;
    Ok([2, 3, (LEN + read) as u64, (LEN + written) as u64])
}

/// Reads and writes with io_submit(2), each with a plain buffer and with a vector.
fn by_aio(file: &File) -> io::Result<[u64; 4]> {
    /// `IOCB_CMD_PREAD`, `PWRITE`, `PREADV` and `PWRITEV` of the kernel's aio_abi.h.
    const COMMANDS: [u16; 4] = [0, 1, 7, 8];
    let mut context: libc::c_ulong = 0;
    let mut bytes = [0_u8; LEN];
    // SAFETY: the kernel writes a number to `context`, which is 0 as io_setup(2) requires.
    done(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    let made = COMMANDS.into_iter().try_for_each(|command| {
        // SAFETY: all-zero bytes are a valid iocb, without flags.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = command;
        request.aio_fildes = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        let part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: LEN };
        let (buffer, len) = if command < 7 {
            (ptr::from_mut(&mut bytes).expose_provenance(), LEN)
        } else {
            (ptr::from_ref(&part).expose_provenance(), 1)
        };
        (request.aio_buf, request.aio_nbytes) = (buffer as u64, len as u64);
        let mut list = [&raw mut request];
        // `struct io_event`: data, request, result, second result
        let mut event = [0_u64; 4];
        // SAFETY: the list has one request. Its buffer, or its vector of one buffer, has the given length and lives until
        // the completion event has been read.
        done(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) })?;
        let no_limit = ptr::null_mut::<libc::timespec>();
        // SAFETY: `event` has room for the one event that the call waits for.
        done(unsafe {
            libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), no_limit)
        })?;
        if event[2] == LEN as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    });
    // SAFETY: the call takes a number and no pointer.
    done(unsafe { libc::syscall(libc::SYS_io_destroy, context) })?;
    made.map(|()| [2, 2, 2 * LEN as u64, 2 * LEN as u64])
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

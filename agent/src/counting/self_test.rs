//! Whether programs at functions of the kernel see the requests that they are there for: a compiler may have put such a
//! function into its callers, and a kernel may go another way. The agent makes requests itself, counted as if it were
//! a VM.

#![expect(unsafe_code, reason = "no library makes requests of io_submit(2)")]

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

/// Octets of a request.
const LEN: usize = 512;

/// This process's first thread, which is there until the end.
struct Leader;

impl HeldThread for Leader {
    fn tid(&self) -> u32 {
        std::process::id()
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        Ok(Schedstat { run_ns: 0, wait_ns: 0 })
    }

    fn run_state(&self) -> io::Result<RunState> {
        Ok(RunState { runnable: true, cpu: 0, is_real_time: false })
    }
}

/// Makes requests of each kind that `method`, which is attached, has to see, and looks whether it did. To be called
/// before anybody else registers VMs in these records.
///
/// # Errors
///
/// What was not seen, for people.
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
        // What other methods see is not for this record.
        let taken = records.claim_image(key, method.layer());
        taken.ok_or("it cannot be tested: no record is free")?;
        let made = match method {
            Method::Aio => by_aio(&file),
            _ => by_calls(&file),
        };
        let made = made.map_err(|error| format!("a request to test it failed: {error}"))?;
        let seen = records.image_io(&records.images_of(key).collect::<Vec<_>>());
        let numbers = |io: DiskIo| [io.reads, io.writes, io.read_octets, io.write_octets];
        if numbers(seen) == made {
            Ok(())
        } else {
            Err(format!("of {made:?} reads, writes and their octets it saw {:?}", numbers(seen)))
        }
    });
    registration.untrack_vm(vm);
    tested
}

/// One that no disk is needed for.
fn file() -> io::Result<File> {
    let file = File::from(memfd_create("kvmeter", MemfdFlags::CLOEXEC)?);
    file.set_len(LEN as u64)?;
    Ok(file)
}

/// One request by each system call. How many reads and writes, and their octets.
fn by_calls(file: &File) -> io::Result<[u64; 4]> {
    let mut octets = [0; LEN];
    file.read_exact_at(&mut octets, 0)?;
    let read = preadv(file, &mut [IoSliceMut::new(&mut octets)], 0)?;
    file.write_all_at(&octets, 0)?;
    let slices = [IoSlice::new(&octets)];
    let written = pwritev(file, &slices, 0)? + pwritev2(file, &slices, 0, ReadWriteFlags::DSYNC)?;
    Ok([2, 3, (LEN + read) as u64, (LEN + written) as u64])
}

/// Reads and writes by io_submit(2), in one part and in a list of parts.
fn by_aio(file: &File) -> io::Result<[u64; 4]> {
    /// `IOCB_CMD_PREAD`, `PWRITE`, `PREADV` and `PWRITEV` of the kernel's aio_abi.h.
    const COMMANDS: [u16; 4] = [0, 1, 7, 8];
    let mut context: libc::c_ulong = 0;
    let mut octets = [0_u8; LEN];
    // SAFETY: the kernel writes a number to `context`, which is 0 as io_setup(2) wants it.
    done(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
    let made = COMMANDS.into_iter().try_for_each(|command| {
        // SAFETY: a request of zeros is one without flags.
        let mut request: libc::iocb = unsafe { std::mem::zeroed() };
        request.aio_lio_opcode = command;
        request.aio_fildes = u32::try_from(file.as_raw_fd()).map_err(io::Error::other)?;
        let part = libc::iovec { iov_base: octets.as_mut_ptr().cast(), iov_len: LEN };
        let (buffer, len) = if command < 7 {
            (ptr::from_mut(&mut octets).expose_provenance(), LEN)
        } else {
            (ptr::from_ref(&part).expose_provenance(), 1)
        };
        (request.aio_buf, request.aio_nbytes) = (buffer as u64, len as u64);
        let mut list = [&raw mut request];
        // `struct io_event`: data, request, result, second result
        let mut event = [0_u64; 4];
        // SAFETY: the list has one request, whose buffer, or list of one, is as long as it says and stays until the event
        // has come.
        done(unsafe { libc::syscall(libc::SYS_io_submit, context, 1, list.as_mut_ptr()) })?;
        let no_limit = ptr::null_mut::<libc::timespec>();
        // SAFETY: there is room for the one event that is waited for.
        done(unsafe {
            libc::syscall(libc::SYS_io_getevents, context, 1, 1, event.as_mut_ptr(), no_limit)
        })?;
        if event[2] == LEN as u64 { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    });
    // SAFETY: it takes a number.
    done(unsafe { libc::syscall(libc::SYS_io_destroy, context) })?;
    made.map(|()| [2, 2, 2 * LEN as u64, 2 * LEN as u64])
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

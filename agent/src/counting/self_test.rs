//! Tests whether programs at kernel functions see the requests that they are attached for. A compiler may have inlined
//! such a function, and a kernel may call another one. The agent makes requests itself and counts them as those of a VM.

#![expect(unsafe_code, reason = "no library makes io_submit(2) requests")]

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    ptr,
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use kvmeter_common::{ImageKey, Owner, VmRecord};
use nix::libc;
use rustix::{
    fs::{AtFlags, MemfdFlags, StatxFlags, memfd_create, statx},
    io::{ReadWriteFlags, preadv, pwritev, pwritev2},
};

use crate::{
    counters::{DiskIo, Records, VmSlot},
    inventory::FileIdentity,
    probe::Method,
};

/// Length of a request in bytes.
const LEN: usize = 512;

/// The VM record and the thread record of the test. No VM gets them: slot 0 of either means none, and the first block of thread
/// records, which has slot 0, is given to no VM.
const VM: VmSlot = VmSlot(0);
const THREAD: u16 = 1;

/// This process, counted as a VM until this is dropped.
struct OwnProcess<'a> {
    records: &'a Records,
    vm: VmSlot,
    is_registered: bool,
}

impl<'a> OwnProcess<'a> {
    fn new(records: &'a Records) -> Result<Self, &'static str> {
        let pid = std::process::id();
        let entry = records.slot_entry(pid).ok_or("its process id is beyond pid_max")?;
        let known = entry.load(Acquire);
        let owner = Owner(records.threads[usize::from(known)].owner.load(Acquire));
        if known > THREAD && owner.tid() == pid {
            return Ok(Self { records, vm: VmSlot(owner.vm_slot()), is_registered: false });
        }
        let (vm, thread) = (&records.vms[usize::from(VM.0)], &records.threads[usize::from(THREAD)]);
        vm.clear();
        // No record and no event is of use for what other threads of this process do meanwhile.
        vm.flags.store(VmRecord::NO_IMAGES | VmRecord::PENDING_THREADS, Release);
        vm.tgid.store(pid.into(), Release);
        thread.clear();
        thread.owner.store(Owner::new(pid, VM.0).0, Release);
        entry.store(THREAD, Release);
        Ok(Self { records, vm: VM, is_registered: true })
    }
}

impl Drop for OwnProcess<'_> {
    fn drop(&mut self) {
        if !self.is_registered {
            return;
        }
        if let Some(entry) = self.records.slot_entry(std::process::id()) {
            let _ = entry.compare_exchange(THREAD, 0, AcqRel, Relaxed);
        }
        self.records.threads[usize::from(THREAD)].free();
        let vm = &self.records.vms[usize::from(VM.0)];
        vm.tgid.store(0, Release);
        vm.clear();
    }
}

/// Makes a request of each kind that `method`, which must be attached, has to see, and checks the counts. One thread at a time
/// may call this.
///
/// # Errors
///
/// What was not counted, for people.
pub fn self_test(records: &Records, method: Method) -> Result<(), String> {
    let failed = |error: &dyn std::fmt::Display| format!("it cannot be tested: {error}");
    let own = OwnProcess::new(records).map_err(|error| failed(&error))?;
    let file = file().map_err(|error| failed(&error))?;
    let found = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::INO);
    let found = found.map_err(|error| failed(&error))?;
    let device = FileIdentity::kernel_device(found.stx_dev_major, found.stx_dev_minor);
    let key = ImageKey { vm: own.vm.0, device, file: found.stx_ino };
    // Other methods do not count in a record of this layer.
    let slot = records.claim_image(key, method.layer()).map_err(|error| failed(&error))?;
    let made = match method {
        Method::Aio => by_aio(&file),
        _ => by_calls(&file),
    };
    let seen = records.image_io(&[slot]);
    records.free_image(slot);
    let expected = made.map_err(|error| format!("a request to test it failed: {error}"))?;
    let numbers = |io: DiskIo| [io.reads, io.writes, io.read_octets, io.write_octets];
    if numbers(seen) == expected {
        Ok(())
    } else {
        Err(format!("of {expected:?} reads, writes and their bytes it saw {:?}", numbers(seen)))
    }
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

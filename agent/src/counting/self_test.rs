//! Tests whether programs at kernel functions see the requests that they are attached for. A compiler may have inlined
//! such a function, and a kernel may call another one. The agent makes requests itself and counts them as those of a VM.

#![expect(unsafe_code, reason = "no library makes io_submit(2) requests")]

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    os::{fd::AsRawFd as _, unix::fs::FileExt as _},
    ptr,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use kvmeter_common::{ImageKey, Layer, Owner, VmRecord};
use nix::libc;
use rustix::{
    fs::{AtFlags, MemfdFlags, StatxFlags, memfd_create, statx},
    io::{ReadWriteFlags, preadv, pwritev, pwritev2},
};

use crate::{
    counters::{DiskIo, ImageSlot, Records, VmSlot},
    inventory::FileIdentity,
    probe::{Method, TestError},
};

/// Length of a request in bytes.
const LEN: usize = 512;

/// Wrong counts in a row that are believed.
const TRIES: usize = 3;

/// Files that are tried until one finds a free record: each has two other buckets of the table.
const FILES: usize = 64;

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
    fn new(records: &'a Records) -> Result<Self, TestError> {
        let pid = std::process::id();
        let entry = records.slot_entry(pid).ok_or_else(|| {
            TestError::Untestable("pid_max was raised since the programs were loaded".to_owned())
        })?;
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

/// Makes requests that a method at functions has to see, and compares the counts. What a test needs is kept from one test to the
/// next: a file in memory with a record, and a context of io_submit(2). Any user may take the last free ones of the host.
#[derive(Debug)]
pub struct SelfTest {
    records: Arc<Records>,
    file: Option<TestFile>,
    context: Option<AioContext>,
}

/// The file of the test, which has a record.
#[derive(Debug)]
struct TestFile {
    file: File,
    key: ImageKey,
}

impl SelfTest {
    /// Takes what the tests need, as far as it is there, and frees the record of an earlier agent's tests. To be dropped before
    /// another one is made for the same records.
    #[must_use]
    pub fn new(records: Arc<Records>) -> Self {
        for image in records.image_records().iter().filter(|image| image.vm() == VM) {
            records.free_image(image.slot);
        }
        let mut test = Self { records, file: None, context: None };
        // What is missing now is tried again by each test.
        let _ = test.reserve(VM);
        test.context = AioContext::new().ok();
        test
    }

    /// Makes a request of each kind that `method`, which must be attached, has to see, and checks the counts.
    ///
    /// # Errors
    ///
    /// [`TestError`]. [`TestError::Missed`] only if the counts were wrong several times in a row: the kernel does not run a
    /// program that has been interrupted on the same CPU.
    pub fn run(&mut self, method: Method) -> Result<(), TestError> {
        let mut result = Ok(());
        for _ in 0..TRIES {
            result = self.attempt(method);
            if !matches!(result, Err(TestError::Missed(_))) {
                break;
            }
        }
        result
    }

    fn attempt(&mut self, method: Method) -> Result<(), TestError> {
        let records = Arc::clone(&self.records);
        let own = OwnProcess::new(&records)?;
        let slot = self.reserve(own.vm)?;
        let counted = || (records.image_io(&[slot]), records.uncounted_requests());
        let (before, uncounted_before) = counted();
        let expected = self.make_requests(method).map_err(|error| {
            TestError::Untestable(format!("a request of the test failed: {error}"))
        })?;
        let (now, uncounted) = counted();
        let difference = |of: fn(&DiskIo) -> u64| of(&now).wrapping_sub(of(&before));
        let seen = [
            difference(|io| io.reads),
            difference(|io| io.writes),
            difference(|io| io.read_octets),
            difference(|io| io.write_octets),
        ];
        judge(expected, seen, uncounted.wrapping_sub(uncounted_before))
    }

    fn make_requests(&mut self, method: Method) -> io::Result<[u64; 4]> {
        let Some(TestFile { file, .. }) = &self.file else {
            return Err(io::ErrorKind::NotFound.into());
        };
        if method != Method::Aio {
            return by_calls(file);
        }
        // A context in which a request may be left is given up.
        let context = self.context.take().map_or_else(AioContext::new, Ok)?;
        let made = context.submit(file)?;
        self.context = Some(context);
        Ok(made)
    }

    /// The record of the test's file for this VM.
    fn reserve(&mut self, vm: VmSlot) -> Result<ImageSlot, TestError> {
        if let Some(TestFile { key, .. }) = self.file
            && key.vm == vm.0
            && let Some(slot) = self.records.images_of(key).next()
        {
            return Ok(slot);
        }
        self.free();
        let mut failure = None;
        for _ in 0..FILES {
            let (file, key) = memory_file(vm)
                .map_err(|error| TestError::Untestable(format!("no file in memory: {error}")))?;
            // The programs of other methods do not count in a record of this layer.
            match self.records.claim_image(key, Layer::Function) {
                Ok(slot) => {
                    self.file = Some(TestFile { file, key });
                    return Ok(slot);
                }
                Err(error) => failure = Some(error),
            }
        }
        let why = failure.map(|error| error.to_string()).unwrap_or_default();
        Err(TestError::Untestable(format!("an image record is needed, and {why}")))
    }

    fn free(&mut self) {
        if let Some(TestFile { key, .. }) = self.file.take() {
            for slot in self.records.images_of(key) {
                self.records.free_image(slot);
            }
        }
    }
}

impl Drop for SelfTest {
    fn drop(&mut self) {
        self.free();
    }
}

/// Compares reads, writes and their bytes. `uncounted` is the number of requests of all VMs that found no room meanwhile: if the
/// missing ones may be among them, nothing was shown.
fn judge(expected: [u64; 4], seen: [u64; 4], uncounted: u64) -> Result<(), TestError> {
    if seen == expected {
        return Ok(());
    }
    let requests = |[reads, writes, ..]: [u64; 4]| reads.saturating_add(writes);
    let missing = requests(expected).saturating_sub(requests(seen));
    if missing > 0 && uncounted >= missing {
        return Err(TestError::Untestable("too many requests are in flight".to_owned()));
    }
    Err(TestError::Missed(format!("of {expected:?} reads, writes and their bytes it saw {seen:?}")))
}

/// A file in memory, and its key in a VM.
fn memory_file(vm: VmSlot) -> io::Result<(File, ImageKey)> {
    let file = File::from(memfd_create("kvmeter", MemfdFlags::CLOEXEC)?);
    file.set_len(LEN as u64)?;
    let found = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
    let device = FileIdentity::kernel_device(found.stx_dev_major, found.stx_dev_minor);
    Ok((file, ImageKey { vm: vm.0, device, file: found.stx_ino }))
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

/// A context of io_submit(2) for one request at a time. All of the host have a limit together, `fs.aio-max-nr`.
#[derive(Debug)]
struct AioContext(libc::c_ulong);

impl AioContext {
    fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes a number to `context`, which is 0 as io_setup(2) requires.
        done(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
        Ok(Self(context))
    }

    /// Reads and writes, each with a plain buffer and with a vector. Returns numbers as [`by_calls`].
    fn submit(&self, file: &File) -> io::Result<[u64; 4]> {
        /// `IOCB_CMD_PREAD`, `PWRITE`, `PREADV` and `PWRITEV` of the kernel's aio_abi.h.
        const COMMANDS: [u16; 4] = [0, 1, 7, 8];
        let mut bytes = [0_u8; LEN];
        for command in COMMANDS {
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
            // the completion event has been read, or the context is destroyed, which waits for the request.
            done(unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, list.as_mut_ptr()) })?;
            let no_limit = ptr::null_mut::<libc::timespec>();
            // SAFETY: `event` has room for the one event that the call waits for.
            done(unsafe {
                libc::syscall(libc::SYS_io_getevents, self.0, 1, 1, event.as_mut_ptr(), no_limit)
            })?;
            if event[2] != LEN as u64 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok([2, 2, 2 * LEN as u64, 2 * LEN as u64])
    }
}

impl Drop for AioContext {
    fn drop(&mut self) {
        // SAFETY: the call takes a number and no pointer.
        let _ = done(unsafe { libc::syscall(libc::SYS_io_destroy, self.0) });
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claims every free record of the table for another VM.
    fn fill(records: &Records) {
        for image in &*records.images {
            let _ = image.owner.compare_exchange(0, u64::MAX, AcqRel, Relaxed);
        }
    }

    fn is_missed(result: &Result<(), TestError>) -> bool {
        matches!(result, Err(TestError::Missed(why)) if why.ends_with("it saw [0, 0, 0, 0]"))
    }

    #[test]
    fn a_full_table_does_not_keep_the_test_from_being_made() {
        let records = Arc::new(Records::in_memory());
        let mut test = SelfTest::new(Arc::clone(&records));
        assert_eq!(records.image_records().len(), 1);
        fill(&records);
        // No program counts in these records.
        for method in [Method::Vfs, Method::Aio, Method::Vfs] {
            let result = test.run(method);
            assert!(is_missed(&result), "{result:?}");
        }
        drop(test);
        assert!(!records.image_records().iter().any(|image| image.vm() == VM));
    }

    #[test]
    fn a_test_that_cannot_be_made_says_nothing_about_the_method() {
        let records = Arc::new(Records::in_memory());
        fill(&records);
        let mut test = SelfTest::new(Arc::clone(&records));
        let result = test.run(Method::Vfs);
        assert!(matches!(&result, Err(TestError::Untestable(_))), "{result:?}");
        // As soon as a record is free, it is made.
        for image in &*records.images {
            image.owner.store(0, Release);
        }
        assert!(is_missed(&test.run(Method::Vfs)));
    }

    #[test]
    fn the_record_of_an_earlier_agents_test_is_freed() {
        let records = Arc::new(Records::in_memory());
        for file in 1..=3 {
            let key = ImageKey { vm: VM.0, device: 1, file };
            records.claim_image(key, Layer::Function).unwrap();
        }
        let _test = SelfTest::new(Arc::clone(&records));
        assert_eq!(records.image_records().len(), 1);
    }

    #[test]
    fn requests_that_found_no_room_are_not_held_against_the_method() {
        let expected = [2, 3, 1024, 1536];
        assert_eq!(judge(expected, expected, 100), Ok(()));
        for (seen, uncounted, is_missed) in [
            ([0; 4], 0, true),
            ([0; 4], 4, true),
            ([0; 4], 5, false),
            ([2, 2, 1024, 1024], 1, false),
            // Counted twice, or with other bytes.
            ([4, 6, 2048, 3072], 100, true),
            ([2, 3, 1024, 1535], 100, true),
        ] {
            let result = judge(expected, seen, uncounted);
            assert_eq!(matches!(result, Err(TestError::Missed(_))), is_missed, "{seen:?}");
            assert!(result.is_err());
        }
    }
}

//! Processes and threads held by a descriptor of their procfs directory: a read through it is of this process or thread,
//! or fails; never of another one that was given the same id since.

use std::{
    ffi::CString,
    fs::File,
    io::{self, Read as _},
    ops::ControlFlow,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use kvmeter_common::{BLOCK_LEN, VM_BLOCKS};
use rustix::{
    fs::{
        AtFlags, CWD, Dir, DirEntry, FileType, Mode, OFlags, Statx, StatxFlags, openat, readlinkat,
        statx,
    },
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open, test_kill_process},
};

use super::{
    plugged::has_write_lock,
    shortage::{if_there, is_closed},
};
use crate::{
    counting::{HeldThread, RunState, Schedstat, identity_of},
    inventory::{DiskSize, FileIdentity},
};

/// Bytes that are read of a file. The files of procfs that are read here are shorter; a longer command line is cut.
const MAX_FILE: u64 = 256 * 1024;

/// Bytes of `status` up to its line `Uid:`, of which the longest is the name, 64 bytes at most if each is escaped.
const STATUS_START: u64 = 4096;

/// Most threads of a process that are held, each with a descriptor: as many as a VM can have records.
pub(super) const MAX_THREADS: usize = VM_BLOCKS * BLOCK_LEN;

/// Most threads of a process that are listed to be tracked.
pub(super) const MAX_LISTED: usize = 1 << 16;

/// Policies of sched(7) under which a thread that does not sleep may keep its CPU for ever.
const SCHED_FIFO: u64 = 1;
const SCHED_RR: u64 = 2;
const SCHED_DEADLINE: u64 = 6;

/// How a descriptor is asked for attributes that the kernel has in memory.
pub(super) const WITHOUT_REQUEST: AtFlags = AtFlags::EMPTY_PATH.union(AtFlags::STATX_DONT_SYNC);

/// `/proc/PID`.
#[derive(Debug)]
pub(super) struct Process {
    dir: OwnedFd,
}

/// `/proc/PID/task/TID`.
#[derive(Debug)]
pub(super) struct Thread {
    tid: u32,
    dir: OwnedFd,
}

/// Fields of `/proc/PID/stat` (proc(5)).
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Stat {
    /// Field 2: the name, in parentheses in the file. It may contain any bytes.
    pub(super) comm: String,
    /// Field 3.
    pub(super) state: char,
    /// Field 4: the parent's id.
    pub(super) parent: u32,
    /// Field 22: start time in clock ticks since boot.
    pub(super) start_ticks: u64,
    /// Whether field 23, the size of virtual memory, is not 0. An exiting process loses its memory, and with it its command
    /// line, before its descriptors.
    pub(super) has_memory: bool,
    /// Field 39: the CPU that it last ran on.
    pub(super) cpu: u32,
    /// Field 41: the scheduling policy (sched(7)).
    pub(super) policy: u64,
}

/// What the kernel knows of a regular file or block device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Measured {
    pub(super) is_block_device: bool,
    pub(super) size: DiskSize,
}

/// Fields of `/proc/PID/fdinfo/FD` (proc(5)).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct DescriptorInfo {
    /// Flags of open(2).
    pub(super) flags: u32,
    /// Mount id.
    pub(super) mount: u64,
    /// Inode number in the kernel; `None` before Linux 5.14.
    pub(super) inode: Option<u64>,
    /// Whether QEMU has locked the file as an image that it may write.
    pub(super) has_write_lock: bool,
}

impl Process {
    /// Opens the procfs directory of a process.
    pub(super) fn hold(proc_root: &Path, pid: u32) -> io::Result<Self> {
        let dir = rustix::fs::open(
            proc_root.join(pid.to_string()),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Ok(Self { dir })
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_at(&self.dir, name)
    }

    /// The name of the first thread: the program's, unless it has another. Does not block, unlike a read of `stat`, which
    /// waits for execve(2) on some kernels. Fails once the process is gone.
    pub(super) fn program(&self) -> io::Result<String> {
        name_at(&self.dir)
    }

    /// The real user id, which neither the process nor a program that it executes can hide.
    pub(super) fn user(&self) -> io::Result<u32> {
        // Groups come later: there may be 65,536.
        let status = start_of_file(self.open("status")?, STATUS_START)?;
        first_of_line(&status, "Uid:").ok_or_else(|| malformed("status"))
    }

    /// Whether it is in a PID namespace below that of procfs, as far as can be told. Does not block.
    pub(super) fn is_nested(&self) -> io::Result<bool> {
        let status = self.read("status")?;
        let status = String::from_utf8_lossy(&status);
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        // Not known if there are so many groups that the line is cut off.
        Ok(ids.is_none_or(|ids| ids.split_whitespace().count() > 1))
    }

    pub(super) fn stat(&self) -> io::Result<Stat> {
        parse_stat(&self.read("stat")?).ok_or_else(|| malformed("stat"))
    }

    /// Whether the process executes a program with one of these names that only root can replace. The names on its command
    /// line are its own to choose.
    pub(super) fn executes(&self, names: &[&str]) -> io::Result<bool> {
        let Some(target) = if_there(readlinkat(&self.dir, "exe", Vec::new()))? else {
            return Ok(false);
        };
        let target = target.to_string_lossy();
        let name = path_of_target(&target).rsplit('/').next().unwrap_or_default();
        if !names.contains(&name) {
            return Ok(false);
        }
        let wanted = StatxFlags::UID | StatxFlags::MODE;
        let stat = if_there(statx(&self.dir, "exe", AtFlags::STATX_DONT_SYNC, wanted))?;
        Ok(stat.is_some_and(|stat| stat.stx_uid == 0 && stat.stx_mode & 0o022 == 0))
    }

    /// Has `visit` see the process's descriptors, ascending, each with the target of its link, until it breaks off. Left out are those
    /// that are closed meanwhile, and those whose target the kernel does not tell, as of a path of more than 4,095 bytes. Returns
    /// whether any were closed.
    pub(super) fn visit_descriptors(
        &self,
        mut visit: impl FnMut(u32, &str) -> ControlFlow<()>,
    ) -> io::Result<bool> {
        let dir = open_dir(&self.dir, "fd")?;
        let (mut buffer, mut are_closed) = (Vec::new(), false);
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let Some(number) = number_of(&entry) else { continue };
            match readlinkat(&dir, entry.file_name(), std::mem::take(&mut buffer)) {
                Ok(target) if visit(number, &target.to_string_lossy()).is_break() => break,
                Ok(target) => buffer = target.into_bytes(),
                Err(error) => are_closed |= is_closed(error.into())?,
            }
        }
        Ok(are_closed)
    }

    /// Opens a file of the procfs directory, for one that is read bit by bit.
    pub(super) fn open(&self, name: &str) -> rustix::io::Result<File> {
        let how = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(File::from(openat(&self.dir, name, how, Mode::empty())?))
    }

    /// A descriptor (`O_PATH`) that stands for the directory to which the link `root` or `cwd` leads.
    pub(super) fn open_place(&self, link: &str) -> rustix::io::Result<OwnedFd> {
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(&self.dir, link, how, Mode::empty())
    }

    /// Type and size of an open file, from the kernel's cached attributes: a network filesystem sends no request. `None`:
    /// neither a regular file nor a block device.
    pub(super) fn measure_descriptor(&self, fd: u32) -> io::Result<Option<Measured>> {
        let wanted = StatxFlags::TYPE | StatxFlags::SIZE | StatxFlags::BLOCKS;
        let found = self.stat_descriptor(fd, wanted)?;
        Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::RegularFile => {
                // statx(2): blocks of 512 bytes
                let allocated = found.stx_blocks.saturating_mul(512);
                let size = DiskSize { defined: Some(found.stx_size), allocated: Some(allocated) };
                Some(Measured { is_block_device: false, size })
            }
            FileType::BlockDevice => {
                let size = size_of_device(found.stx_rdev_major, found.stx_rdev_minor);
                let size = if_there(size)?.unwrap_or_default();
                Some(Measured { is_block_device: true, size })
            }
            _ => None,
        })
    }

    /// The identity of a descriptor's file, from the kernel's cached attributes. `None`: neither a regular file nor a block
    /// device.
    pub(super) fn identity_of_descriptor(&self, fd: u32) -> io::Result<Option<FileIdentity>> {
        Ok(identity_of(&self.stat_descriptor(fd, StatxFlags::TYPE | StatxFlags::INO)?))
    }

    /// Attributes of a descriptor's file, from the kernel's cache.
    fn stat_descriptor(&self, fd: u32, wanted: StatxFlags) -> rustix::io::Result<Statx> {
        statx(&self.dir, format!("fd/{fd}"), AtFlags::STATX_DONT_SYNC, wanted)
    }

    /// Opens a descriptor's file for reading, if it still is the file with the identity `expected`. Reading from it may block
    /// on a disk or a server.
    pub(super) fn open_descriptor(&self, fd: u32, expected: FileIdentity) -> io::Result<File> {
        let place = OFlags::PATH | OFlags::CLOEXEC;
        let found = openat(&self.dir, format!("fd/{fd}"), place, Mode::empty())?;
        if kind_of(found.as_fd())?.1 != Some(expected) {
            return Err(io::ErrorKind::NotFound.into());
        }
        open_again(&found)
    }

    /// Open flags, mount and inode of a descriptor, and the interface if it is a tap. Asks no filesystem.
    pub(super) fn descriptor_info(&self, fd: u32) -> io::Result<(DescriptorInfo, Option<String>)> {
        let text = self.read(&format!("fdinfo/{fd}"))?;
        let info = parse_descriptor_info(&text).ok_or_else(|| malformed("fdinfo"))?;
        Ok((info, parse_tap(&text)))
    }

    /// Whether it is in another user namespace than the agent, or may be.
    pub(super) fn is_foreign(&self) -> io::Result<bool> {
        let own = if_there(readlinkat(CWD, "/proc/self/ns/user", Vec::new()))?;
        let its = if_there(readlinkat(&self.dir, "ns/user", Vec::new()))?;
        Ok(own.is_none() || its != own)
    }

    /// The network namespace, as the link to it names it.
    pub(super) fn network_namespace(&self) -> rustix::io::Result<CString> {
        readlinkat(&self.dir, "ns/net", Vec::new())
    }

    /// The device number of a descriptor's file; `None`: it is no character device.
    pub(super) fn character_device(&self, fd: u32) -> io::Result<Option<(u32, u32)>> {
        let found = self.stat_descriptor(fd, StatxFlags::TYPE)?;
        let kind = FileType::from_raw_mode(found.stx_mode.into());
        let is_one = kind == FileType::CharacterDevice;
        Ok(is_one.then_some((found.stx_rdev_major, found.stx_rdev_minor)))
    }

    /// The ids of the threads, those that were started first if there are more than `most`. Does not block.
    pub(super) fn thread_ids(&self, most: usize) -> io::Result<Vec<u32>> {
        numbers(&open_dir(&self.dir, "task")?, most)
    }

    /// Holds threads of this process, ascending by id. Those that have exited are left out. Does not block.
    pub(super) fn hold_threads(
        &self,
        tids: impl IntoIterator<Item = u32>,
    ) -> io::Result<Vec<Thread>> {
        let task = open_dir(&self.dir, "task")?;
        let mut threads = Vec::new();
        for tid in tids {
            if let Some(dir) = if_there(open_dir(&task, &tid.to_string()))? {
                threads.push(Thread { tid, dir });
            }
        }
        threads.sort_by_key(|thread| thread.tid);
        Ok(threads)
    }
}

/// The threads of a process to be held: all of them, or as many as a VM can have records, `first` those of vCPUs.
pub(super) fn to_hold(listed: &[u32], first: impl Fn(u32) -> bool) -> Vec<u32> {
    if listed.len() <= MAX_THREADS {
        return listed.to_vec();
    }
    let (first, others): (Vec<u32>, Vec<u32>) = listed.iter().partition(|tid| first(**tid));
    first.into_iter().chain(others).take(MAX_THREADS).collect()
}

impl Thread {
    pub(super) const fn tid(&self) -> u32 {
        self.tid
    }

    pub(super) fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        read_at(&self.dir, name)
    }

    pub(super) fn name(&self) -> io::Result<String> {
        name_at(&self.dir)
    }

    /// Field 3 of `/proc/PID/task/TID/stat` (proc(5)).
    pub(super) fn state(&self) -> io::Result<char> {
        Ok(parse_stat(&self.read("stat")?).ok_or_else(|| malformed("stat"))?.state)
    }
}

impl HeldThread for Thread {
    fn tid(&self) -> u32 {
        self.tid
    }

    fn schedstat(&self) -> io::Result<Schedstat> {
        let text = self.read("schedstat")?;
        let mut words = text.split(u8::is_ascii_whitespace).map(number);
        match (words.next().flatten(), words.next().flatten()) {
            (Some(run_ns), Some(wait_ns)) => Ok(Schedstat { run_ns, wait_ns }),
            _ => Err(malformed("schedstat")),
        }
    }

    fn run_state(&self) -> io::Result<RunState> {
        let how = OFlags::RDONLY | OFlags::CLOEXEC;
        let status = File::from(openat(&self.dir, "status", how, Mode::empty())?);
        let status = start_of_file(status, STATUS_START)?;
        let state = state_of(&status).ok_or_else(|| malformed("status"))?;
        // A dead thread's files stay readable until its last reference is dropped.
        if matches!(state, 'X' | 'x') {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(RunState { runnable: state == 'R', has_ended: state == 'Z' })
    }

    fn place(&self) -> Box<dyn FnOnce() -> Option<u32> + Send> {
        let dir = self.dir.try_clone();
        Box::new(move || {
            let stat = parse_stat(&read_at(&dir.ok()?, "stat").ok()?)?;
            let is_real_time = matches!(stat.policy, SCHED_FIFO | SCHED_RR | SCHED_DEADLINE);
            (!is_real_time && !matches!(stat.state, 'X' | 'x')).then_some(stat.cpu)
        })
    }
}

/// The name of a process or thread.
fn name_at(dir: &OwnedFd) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&read_at(dir, "comm")?).trim_end_matches('\n').to_owned())
}

/// Opens for reading the file that an `O_PATH` descriptor stands for. `NONBLOCK`: otherwise the call waits while another process
/// has a lease on the file (`F_SETLEASE` of fcntl(2)).
pub(super) fn open_again(held: &OwnedFd) -> io::Result<File> {
    let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let itself = format!("/proc/self/fd/{}", held.as_raw_fd());
    Ok(File::from(rustix::fs::open(itself, how, Mode::empty())?))
}

/// Mount and inode of a descriptor of this process, with or without a right to read. Asks no filesystem.
pub(super) fn own_descriptor_info(held: BorrowedFd<'_>) -> io::Result<DescriptorInfo> {
    let text = std::fs::read(format!("/proc/self/fdinfo/{}", held.as_raw_fd()))?;
    let mut info = parse_descriptor_info(&text).ok_or_else(|| malformed("fdinfo"))?;
    if info.inode.is_none() {
        info.inode = Some(statx(held, "", WITHOUT_REQUEST, StatxFlags::INO)?.stx_ino);
    }
    Ok(info)
}

/// Type and identity of a descriptor's file, from the kernel's cached attributes. The identity is `None` of what is neither
/// a regular file nor a block device.
pub(super) fn kind_of(
    held: BorrowedFd<'_>,
) -> rustix::io::Result<(FileType, Option<FileIdentity>)> {
    let found = statx(held, "", WITHOUT_REQUEST, StatxFlags::TYPE | StatxFlags::INO)?;
    Ok((FileType::from_raw_mode(found.stx_mode.into()), identity_of(&found)))
}

/// The size of a block device. sysfs has it in sectors of 512 bytes, whatever the device's own are.
fn size_of_device(major: u32, minor: u32) -> io::Result<DiskSize> {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/size"))?;
    let bytes = text.trim().parse::<u64>().ok().and_then(|sectors| sectors.checked_mul(512));
    Ok(DiskSize { defined: bytes, allocated: bytes })
}

/// The path in the target of a link of procfs. The kernel appends ` (deleted)` to that of an unlinked file.
pub(super) fn path_of_target(target: &str) -> &str {
    target.strip_suffix(" (deleted)").unwrap_or(target)
}

/// The process id of a thread; `None`: the thread is gone. Does not block.
pub(super) fn of_thread(proc_root: &Path, tid: u32) -> Option<u32> {
    first_in_status(proc_root, tid, "Tgid:")
}

/// Whether there is a process or thread with this id, which may have exited and not been waited for. Costs one short system call.
pub(super) fn is_there(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    pid.is_some_and(|pid| test_kill_process(pid) != Err(Errno::SRCH))
}

/// A descriptor of a process, which is readable once the process has ended.
pub(super) fn open_pidfd(pid: u32) -> io::Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Whether a process has not begun to exit (exit_mm() of the kernel's exit.c). Does not block.
pub(super) fn has_memory(proc_root: &Path, pid: u32) -> bool {
    let text = start_of(&proc_root.join(pid.to_string()).join("statm"), STATUS_START);
    text.is_ok_and(|text| !text.starts_with(b"0 "))
}

/// The first number of a line at the start of `/proc/ID/status`.
fn first_in_status(proc_root: &Path, id: u32, label: &str) -> Option<u32> {
    // Names may contain any bytes. Groups come later: there may be 65,536.
    let status = start_of(&proc_root.join(id.to_string()).join("status"), STATUS_START).ok()?;
    first_of_line(&status, label)
}

/// The letter of the state in the text of `status`.
fn state_of(status: &[u8]) -> Option<char> {
    let status = String::from_utf8_lossy(status);
    status.lines().find_map(|line| line.strip_prefix("State:"))?.trim_start().chars().next()
}

fn first_of_line(status: &[u8], label: &str) -> Option<u32> {
    let status = String::from_utf8_lossy(status);
    let rest = status.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// The ids of all processes.
pub(super) fn pids(proc_root: &Path) -> io::Result<Vec<u32>> {
    let dir = rustix::fs::open(
        proc_root,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    numbers(&dir, usize::MAX)
}

/// Parses `/proc/PID/stat`. The name ends at the last parenthesis: it may contain parentheses and spaces itself.
pub(super) fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|&byte| byte == b'(')?;
    let close = text.iter().rposition(|&byte| byte == b')')?;
    let comm = String::from_utf8_lossy(text.get(open + 1..close)?).into_owned();
    // fields[0] is field 3, the state.
    let fields: Vec<&[u8]> = text.get(close + 2..)?.split(u8::is_ascii_whitespace).collect();
    Some(Stat {
        comm,
        state: char::from(*fields.first()?.first()?),
        parent: u32::try_from(number(fields.get(1)?)?).ok()?,
        start_ticks: number(fields.get(19)?)?,
        has_memory: number(fields.get(20)?)? != 0,
        cpu: u32::try_from(number(fields.get(36)?)?).ok()?,
        policy: number(fields.get(38)?)?,
    })
}

fn parse_descriptor_info(text: &[u8]) -> Option<DescriptorInfo> {
    let has_write_lock = has_write_lock(text);
    let text = std::str::from_utf8(text).ok()?;
    let field = |name: &str| {
        text.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
    };
    Some(DescriptorInfo {
        flags: u32::from_str_radix(field("flags")?, 8).ok()?,
        mount: field("mnt_id")?.parse().ok()?,
        inode: field("ino").and_then(|number| number.parse().ok()),
        has_write_lock,
    })
}

/// The name of a tap in its network namespace (tun_chr_show_fdinfo() in drivers/net/tun.c). `None`: it is no tap, or no
/// interface is attached to it.
fn parse_tap(text: &[u8]) -> Option<String> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let name = lines.find_map(|line| line.strip_prefix(b"iff:"))?.trim_ascii();
    String::from_utf8(name.to_vec()).ok().filter(|name| !name.is_empty())
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// The entries of a directory whose names are numbers, `most` at most.
fn numbers(dir: &OwnedFd, most: usize) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        found.extend(number_of(&entry?));
        if found.len() >= most {
            break;
        }
    }
    Ok(found)
}

fn number_of(entry: &DirEntry) -> Option<u32> {
    entry.file_name().to_str().ok()?.parse().ok()
}

fn open_dir(at: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    Ok(openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

fn read_at(dir: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let file = File::from(openat(dir, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?);
    start_of_file(file, MAX_FILE)
}

/// The first bytes of a file, `most` at most.
fn start_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    start_of_file(File::open(path)?, most)
}

fn start_of_file(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(most).read_to_end(&mut content)?;
    Ok(content)
}

pub(super) fn malformed(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{name} in procfs is not as proc(5) says"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_may_contain_spaces_and_parentheses() {
        let text = b"42 (CPU 0/KVM) x) R 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 999 20 21 22 23 24 25 26 27 28 29 30 31 32 33 34 35 3 37 1";
        let stat = parse_stat(text).unwrap();
        assert_eq!((stat.policy, stat.has_memory), (1, true));
        assert_eq!(
            (stat.comm.as_str(), stat.state, stat.start_ticks, stat.cpu),
            ("CPU 0/KVM) x", 'R', 999, 3)
        );
    }

    #[test]
    fn the_state_of_a_thread_is_told_without_its_stat_and_its_cpu_by_that() {
        let status = b"Name:\tState:\\tZ\nUmask:\t0022\nState:\tR (running)\nTgid:\t1\n";
        assert_eq!((state_of(status), state_of(b"Name:\tx\n")), (Some('R'), None));
        let process = Process::hold(Path::new("/proc"), std::process::id()).unwrap();
        let own = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        let threads = process.hold_threads(vec![own]).unwrap();
        assert_eq!(threads[0].run_state().unwrap(), RunState { runnable: true, has_ended: false });
        assert!(std::thread::spawn(threads[0].place()).join().unwrap().is_some());
    }

    #[test]
    fn flags_are_octal() {
        let info = parse_descriptor_info(b"pos:\t0\nflags:\t0140002\nmnt_id:\t25\nino:\t12\n");
        assert_eq!(
            info,
            Some(DescriptorInfo {
                flags: 0o140_002,
                mount: 25,
                inode: Some(12),
                has_write_lock: false
            })
        );
        assert_eq!(parse_descriptor_info(b"flags:\t9\nmnt_id:\t25\n"), None);
    }

    #[test]
    fn of_too_many_threads_those_of_vcpus_are_held() {
        let few: Vec<u32> = (1..=9).collect();
        assert_eq!(to_hold(&few, |_| false), few);
        let many: Vec<u32> = (1..=60_000).collect();
        let held = to_hold(&many, |tid| tid > 59_000);
        assert_eq!(held.len(), MAX_THREADS);
        assert!(held.contains(&1) && held.iter().filter(|tid| **tid > 59_000).count() == 1000);
    }

    #[test]
    fn a_tap_has_a_name() {
        let before = "pos:\t0\nflags:\t0104002\nmnt_id:\t30\nino:\t87\n";
        let tap = |line: &str| parse_tap(format!("{before}{line}").as_bytes());
        assert_eq!(tap("iff:\tvnet7\n"), Some("vnet7".to_owned()));
        assert_eq!((tap("iff:\t\n"), tap("")), (None, None));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_bytes_panic(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (state_of(&text), parse_stat(&text), parse_descriptor_info(&text), parse_tap(&text));
        }
    }
}

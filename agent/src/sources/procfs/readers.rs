//! The threads that read processes. A read of `/proc/PID` may block in the kernel: `fd`, `maps`, `syscall`, and on some
//! kernels `stat`, wait while the process is in execve(2), which itself may wait for a file server that hangs.
//!
//! One thread reads all processes. A read that is late keeps its thread, delays no other process, and is shown in the status
//! until it returns; the next read gets a new thread.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, SystemTime},
};

use crossbeam_channel::{Sender, bounded, unbounded};
use rustix::time::{ClockId, clock_gettime};
use tracing::warn;

use super::{
    accounts,
    process::{self, Process},
    warnings::WarningLimit,
};
use crate::{
    account::{Account, Limits},
    sources::HangingRead,
    worker::Facts,
};

/// A read that takes longer is late. Its result is used nevertheless, when it comes.
const DEADLINE: Duration = Duration::from_millis(100);

/// Most late reads in all. While there are as many, no process is read.
const MAX_LATE: usize = 64;

/// Late reads of processes that are neither root's nor domains of libvirt's system daemon.
const LATE_OF_ACCOUNTS: Limits = Limits { all: 48, many: 32, each: 8 };

/// Waiting processes before those that have ended are looked for: a read may hang for ever, and processes come and go meanwhile.
const SWEEP: usize = 1024;

/// Size of a reader's stack. A VMM's JSON is parsed on it, which may nest 128 levels deep.
const STACK: usize = 1 << 20;

/// The readers, and what is known of the late reads. `C` = what is kept with a late read until it returns.
#[derive(Debug)]
pub(super) struct Readers<T, C> {
    proc_root: PathBuf,
    facts: Facts,
    /// Eventfd that is written to after a late read has returned.
    wake: Arc<OwnedFd>,
    idle: Option<Reader<T>>,
    late: Vec<Late<T, C>>,
    /// Processes that are to be read when a late read has returned.
    waiting: BTreeSet<u32>,
    /// Number of waiting processes at which those that have ended are looked for.
    sweep: usize,
    /// What the reads have cost since [`take_cost`](Self::take_cost).
    cost: Duration,
    /// What late reads that have returned have cost, each with the account of the process.
    late_costs: Vec<(Account, Duration)>,
    shared: Arc<Hanging>,
    warnings: WarningLimit,
}

/// The late reads as the status sees them.
#[derive(Debug, Default)]
pub(super) struct Hanging(Mutex<Vec<Shown>>);

#[derive(Clone, Debug)]
struct Shown {
    pid: u32,
    program: String,
    /// The reader's thread id.
    tid: u32,
    since: SystemTime,
}

/// What came of a read.
#[derive(Debug)]
pub(super) enum Answer<T, C> {
    Done(T, C),
    /// [`Readers::take_returned`] has the result later.
    Late,
}

/// A late read that has returned.
#[derive(Debug)]
pub(super) struct Returned<T, C> {
    pub(super) pid: u32,
    /// Whether it is of the process that has this id now.
    pub(super) is_present: bool,
    pub(super) result: T,
    pub(super) kept: C,
    /// Whether the process was to be read again meanwhile.
    pub(super) again: bool,
}

#[derive(Debug)]
struct Late<T, C> {
    pid: u32,
    /// `None` = it was gone when its read was late.
    process: Option<Process>,
    /// The account on whose share of the readers it counts; `None` = the process is root's or a domain.
    account: Option<Account>,
    reader: Reader<T>,
    kept: C,
    again: bool,
}

#[derive(Debug)]
struct Reader<T> {
    jobs: Sender<Job<T>>,
    desk: Arc<Desk<T>>,
    tid: u32,
}

type Job<T> = Box<dyn FnOnce() -> T + Send>;

/// Where a reader leaves its result.
#[derive(Debug)]
struct Desk<T> {
    state: Mutex<State<T>>,
    done: Condvar,
}

#[derive(Debug)]
struct State<T> {
    /// The result, and the CPU time that it took.
    result: Option<(T, Duration)>,
    /// The result is not waited for any more.
    is_late: bool,
}

impl<T: Send + 'static, C> Readers<T, C> {
    pub(super) fn new(proc_root: PathBuf, facts: Facts, wake: OwnedFd) -> Self {
        Self {
            proc_root,
            facts,
            wake: Arc::new(wake),
            idle: None,
            late: Vec::new(),
            waiting: BTreeSet::new(),
            sweep: SWEEP,
            cost: Duration::ZERO,
            late_costs: Vec::new(),
            shared: Arc::default(),
            warnings: WarningLimit::default(),
        }
    }

    /// The late reads, for the status.
    pub(super) fn hanging(&self) -> Arc<Hanging> {
        Arc::clone(&self.shared)
    }

    /// Whether a process can be read now. If not, it can be when [`take_returned`](Self::take_returned) names it.
    pub(super) fn can_read(&mut self, pid: u32) -> bool {
        if self.late.is_empty() {
            return true;
        }
        let mut late = self.late.iter_mut();
        if let Some(late) = late.find(|late| late.pid == pid && late.is_present()) {
            late.again = true;
            return false;
        }
        let has_share = match self.share_of(pid) {
            Ok(Some(account)) => {
                let of_all = self.late.iter().filter(|late| late.account.is_some()).count();
                let own = self.late.iter().filter(|late| late.account == Some(account)).count();
                LATE_OF_ACCOUNTS.has_room(own, of_all)
            }
            // The read lacks the same, and says so.
            Ok(None) | Err(_) => true,
        };
        let is_full = self.late.len() >= MAX_LATE || !has_share;
        if is_full {
            self.waiting.insert(pid);
            if self.waiting.len() >= self.sweep {
                self.waiting.retain(|pid| process::is_there(*pid));
                self.sweep = SWEEP.max(self.waiting.len() * 2);
            }
        }
        !is_full
    }

    /// The account on which a read of the process counts; `None` = the process is root's or that of a domain of root's libvirt. Does
    /// not block.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(super) fn share_of(&self, pid: u32) -> io::Result<Option<Account>> {
        accounts::of(&self.proc_root, pid)
    }

    /// Reads a process on another thread, and waits for the result until [`DEADLINE`]. `kept` is given back with it.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub(super) fn read(
        &mut self,
        pid: u32,
        kept: C,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<Answer<T, C>> {
        let reader = match self.idle.take() {
            Some(reader) => reader,
            None => Reader::start(&self.facts, &self.wake)?,
        };
        if let Some((result, cost)) = reader.run(Box::new(read))? {
            self.idle = Some(reader);
            self.cost += cost;
            return Ok(Answer::Done(result, kept));
        }
        // Other processes have waited for it.
        self.cost += DEADLINE;
        let process = Process::hold(&self.proc_root, pid).ok();
        let program = process.as_ref().and_then(|process| process.program().ok());
        let program = program.unwrap_or_default();
        let account = self.share_of(pid).unwrap_or(Some(Account::Ended));
        if self.warnings.allows() {
            warn!(pid, program, "Reading a process takes long; `kvmeter status` lists such reads");
        }
        self.shared.shown().push(Shown {
            pid,
            program,
            tid: reader.tid,
            since: SystemTime::now().checked_sub(DEADLINE).unwrap_or(SystemTime::UNIX_EPOCH),
        });
        self.late.push(Late { pid, process, account, reader, kept, again: false });
        Ok(Answer::Late)
    }

    /// The late reads that have returned, and the processes that can be read now.
    pub(super) fn take_returned(&mut self) -> (Vec<Returned<T, C>>, BTreeSet<u32>) {
        let mut returned = Vec::new();
        let is_done = |late: &mut Late<T, C>| late.reader.desk.state().result.is_some();
        for late in self.late.extract_if(.., is_done) {
            let is_present = late.is_present();
            let Late { pid, account, reader, kept, again, .. } = late;
            let result = {
                let mut state = reader.desk.state();
                state.is_late = false;
                state.result.take()
            };
            self.shared.shown().retain(|shown| shown.tid != reader.tid);
            if let Some((result, cost)) = result {
                returned.push(Returned { pid, is_present, result, kept, again });
                self.late_costs.extend(account.map(|account| (account, cost)));
            }
            // A thread without jobs ends when its reader is dropped.
            self.idle.get_or_insert(reader);
        }
        let waiting = match returned.is_empty() {
            true => BTreeSet::new(),
            false => std::mem::take(&mut self.waiting),
        };
        (returned, waiting)
    }

    /// The CPU time that reads have taken since the last call. For a late one it is [`DEADLINE`].
    pub(super) fn take_cost(&mut self) -> Duration {
        std::mem::take(&mut self.cost)
    }

    /// The CPU time of late reads that have returned since the last call, each with the account of the process.
    pub(super) fn take_late_costs(&mut self) -> Vec<(Account, Duration)> {
        std::mem::take(&mut self.late_costs)
    }

    /// Whether a read of a process is late or waits.
    pub(super) fn is_unread(&self, pid: u32) -> bool {
        self.waiting.contains(&pid) || self.late.iter().any(|late| late.pid == pid)
    }
}

impl<T, C> Late<T, C> {
    /// Whether the process is not gone. Its id is no other process's then.
    fn is_present(&self) -> bool {
        self.process.as_ref().is_some_and(|process| process.program().is_ok())
    }
}

impl<T: Send + 'static> Reader<T> {
    fn start(facts: &Facts, wake: &Arc<OwnedFd>) -> io::Result<Self> {
        let (jobs, received) = unbounded::<Job<T>>();
        let state = Mutex::new(State { result: None, is_late: false });
        let desk = Arc::new(Desk { state, done: Condvar::new() });
        let (tid_sender, tid) = bounded(1);
        let (facts, wake, of_thread) = (facts.clone(), Arc::clone(wake), Arc::clone(&desk));
        let run = move || {
            let _end = facts.end_guard("procfs reader");
            // The receiver waits below.
            let _ = tid_sender.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            for job in received {
                let before = cpu_time();
                let result = job();
                of_thread.put((result, cpu_time().saturating_sub(before)), &wake);
            }
        };
        thread::Builder::new().name("procfs reader".to_owned()).stack_size(STACK).spawn(run)?;
        let tid = tid.recv().map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
        Ok(Self { jobs, desk, tid })
    }

    /// The result; `None` = it is late.
    fn run(&self, job: Job<T>) -> io::Result<Option<(T, Duration)>> {
        self.jobs.send(job).map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
        let waits = |state: &mut State<T>| state.result.is_none();
        let waited = self.desk.done.wait_timeout_while(self.desk.state(), DEADLINE, waits);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let result = state.result.take();
        state.is_late = result.is_none();
        Ok(result)
    }
}

/// The CPU time that the calling thread has used.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

impl<T> Desk<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // A read that panics does not hold the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, result: (T, Duration), wake: &OwnedFd) {
        let mut state = self.state();
        state.result = Some(result);
        if state.is_late {
            drop(state);
            // Any number but 0 wakes the thread. Fails only if the counter is at its maximum; then the thread is awake.
            let _ = rustix::io::write(wake, &[1; 8]);
        } else {
            self.done.notify_one();
        }
    }
}

impl Hanging {
    fn shown(&self) -> MutexGuard<'_, Vec<Shown>> {
        // Each change is one call that leaves the list whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The late reads, each with the function of the kernel in which it waits.
    pub(super) fn list(&self) -> Vec<HangingRead> {
        let shown = self.shown().clone();
        let read = |Shown { pid, program, tid, since }: Shown| {
            // Of a thread of this process, which is readable and does not block.
            let function = fs::read_to_string(format!("/proc/self/task/{tid}/wchan"));
            let function = function.ok().filter(|name| !matches!(name.as_str(), "" | "0"));
            HangingRead { pid, program, since, function }
        };
        shown.into_iter().map(read).collect()
    }

    /// Since when no process can be read.
    pub(super) fn full_since(&self) -> Option<SystemTime> {
        let shown = self.shown();
        shown.iter().map(|shown| shown.since).max().filter(|_| shown.len() >= MAX_LATE)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn readers() -> Readers<u32, &'static str> {
        let facts = Facts::new(unbounded().0, tokio::sync::mpsc::unbounded_channel().0);
        Readers::new("/proc".into(), facts, eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    /// A read that returns when the sender is dropped.
    fn blocked(gate: Receiver<()>) -> impl FnOnce() -> u32 + Send {
        move || {
            let _ = gate.recv();
            7
        }
    }

    #[test]
    fn a_read_that_blocks_delays_no_other_and_is_used_when_it_returns() {
        let mut readers = readers();
        let own = std::process::id();
        assert!(matches!(readers.read(1, "first", || 1), Ok(Answer::Done(1, "first"))));
        let thread = readers.idle.as_ref().unwrap().tid;
        let (open, gate) = bounded(0);
        assert!(matches!(readers.read(own, "blocked", blocked(gate)), Ok(Answer::Late)));
        assert!(!readers.can_read(own) && readers.is_unread(own));
        let hanging = readers.hanging().list();
        assert_eq!((hanging.len(), hanging[0].pid), (1, own));
        assert!(readers.can_read(1));
        assert!(matches!(readers.read(1, "next", || 2), Ok(Answer::Done(2, "next"))));
        assert_ne!(readers.idle.as_ref().unwrap().tid, thread, "another thread reads");
        assert!(readers.take_returned().0.is_empty());

        drop(open);
        // The eventfd becomes readable.
        rustix::io::read(&readers.wake, &mut [0; 8]).unwrap();
        let (returned, _) = readers.take_returned();
        let [Returned { pid, is_present: true, result: 7, kept: "blocked", again: true }] =
            &returned[..]
        else {
            panic!("{returned:?}")
        };
        assert_eq!(*pid, own);
        assert!(readers.hanging().list().is_empty() && readers.can_read(own));
    }

    /// A directory such as `/proc`, with the user and control group of each process.
    fn proc_of(processes: impl IntoIterator<Item = (u32, u32, &'static str)>) -> tempfile::TempDir {
        let proc_root = tempfile::tempdir().unwrap();
        for (pid, user, group) in processes {
            let dir = proc_root.path().join(pid.to_string());
            fs::create_dir(&dir).unwrap();
            let status = format!("Name:\tx\nUid:\t{user}\t0\t0\t0\nNSpid:\t{pid}\n");
            fs::write(dir.join("status"), status).unwrap();
            fs::write(dir.join("cgroup"), format!("0::{group}\n")).unwrap();
        }
        proc_root
    }

    #[test]
    fn processes_that_have_ended_do_not_wait_for_a_read_that_hangs_for_ever() {
        let mut readers = readers();
        let (_open, gate) = bounded(0);
        // No process has such an id.
        let mut pids = 0x7000_0000..0x7001_0000;
        for pid in pids.by_ref().take(LATE_OF_ACCOUNTS.each) {
            let reader = Reader::start(&readers.facts, &readers.wake).unwrap();
            reader.jobs.send(Box::new(blocked(gate.clone()))).unwrap();
            reader.desk.state().is_late = true;
            let account = Some(Account::Ended);
            readers.late.push(Late { pid, process: None, account, reader, kept: "", again: false });
        }
        for pid in pids {
            assert!(!readers.can_read(pid));
        }
        assert!(readers.waiting.len() <= SWEEP, "{}", readers.waiting.len());
    }

    #[test]
    fn users_leave_readers_for_root_and_libvirt() {
        const USERS: u32 = 100;
        let [root, domain] = [1, 2];
        // Ten processes of each user.
        let of_users = (10..USERS * 10).map(|pid| (pid, pid / 10, "/user.slice"));
        let others = [
            (root, 0, "/init.scope"),
            (domain, 64055, r"/machine.slice/machine-qemu\x2d3\x2dweb.scope"),
        ];
        let proc_root = proc_of(of_users.chain(others));
        let mut readers = readers();
        readers.proc_root = proc_root.path().to_owned();
        let (open, gate) = bounded(0);
        let late = |readers: &mut Readers<u32, &'static str>, pid: u32| {
            let reader = Reader::start(&readers.facts, &readers.wake).unwrap();
            reader.jobs.send(Box::new(blocked(gate.clone()))).unwrap();
            reader.desk.state().is_late = true;
            let account = readers.share_of(pid).unwrap();
            let late = Late { pid, process: None, account, reader, kept: "", again: false };
            readers.late.push(late);
        };
        for pid in 10..20 {
            if readers.can_read(pid) {
                late(&mut readers, pid);
            }
        }
        assert_eq!(readers.late.len(), LATE_OF_ACCOUNTS.each, "a user has a share");
        for pid in 20..50 {
            if readers.can_read(pid) {
                late(&mut readers, pid);
            }
        }
        assert_eq!(readers.late.len(), LATE_OF_ACCOUNTS.many, "four users have used theirs");
        assert!(readers.can_read(50), "a user whose processes can be read is not affected");
        late(&mut readers, 50);
        assert!(!readers.can_read(51), "but has not eight, too");
        for pid in 51..USERS * 10 {
            if readers.can_read(pid) {
                late(&mut readers, pid);
            }
        }
        assert_eq!(readers.late.len(), LATE_OF_ACCOUNTS.all, "users have a share");
        // Of a process that is gone the user is not known.
        assert!(!readers.can_read(u32::MAX));
        assert!(readers.can_read(root) && readers.can_read(domain));
        while readers.late.len() < MAX_LATE {
            late(&mut readers, domain);
        }
        assert!(!readers.can_read(root), "the number is bounded in all");
        drop(open);
        rustix::io::read(&readers.wake, &mut [0; 8]).unwrap();
        let (returned, waiting) = readers.take_returned();
        assert!(!returned.is_empty());
        assert!(waiting.contains(&root), "it can be read now");
    }
}

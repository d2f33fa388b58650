//! Two threads that do nothing but give one CPU to each other.

use std::{
    io::{self, Read as _, Write as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_setaffinity, sched_yield};

use crate::tracked::OwnThread;

/// How the two take turns.
#[derive(Clone, Copy, Debug)]
pub(super) enum Turns {
    /// Each wakes the other through a pipe and sleeps: the one that leaves the CPU does not want it.
    Pipe,
    /// Each yields: the one that leaves the CPU still wants it.
    Yield,
}

/// What one thread does from one start to the next stop.
type Turn = Box<dyn FnMut() -> io::Result<()> + Send>;

/// Two threads, which sleep until they are told to go and end when this is dropped.
pub(super) struct Pair {
    pub(super) threads: [OwnThread; 2],
    stop: Arc<AtomicBool>,
    go: [mpsc::Sender<()>; 2],
    done: mpsc::Receiver<io::Result<()>>,
}

impl Pair {
    /// Two threads on the CPU with this number.
    pub(super) fn new(turns: Turns, cpu: usize) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let [first, second] = match turns {
            Turns::Pipe => ping_pong(&stop)?,
            Turns::Yield => [yielding(&stop), yielding(&stop)],
        };
        let (tell, done) = mpsc::channel();
        let (first, go_first) = start(cpu, first, tell.clone())?;
        let (second, go_second) = start(cpu, second, tell)?;
        Ok(Self { threads: [first, second], stop, go: [go_first, go_second], done })
    }

    /// Lets the two switch for as long as `meanwhile` takes.
    pub(super) fn switch_during<R>(
        &self,
        meanwhile: impl FnOnce() -> anyhow::Result<R>,
    ) -> anyhow::Result<R> {
        self.stop.store(false, Ordering::Relaxed);
        for go in &self.go {
            go.send(()).context("A thread of the load is gone")?;
        }
        let result = meanwhile();
        self.stop.store(true, Ordering::Relaxed);
        for _ in &self.go {
            self.done.recv().context("The threads of the load are gone")??;
        }
        result
    }

    /// How often the two have got a CPU.
    pub(super) fn switches_in(&self) -> io::Result<u64> {
        self.threads.iter().map(|thread| thread.switches_in()).sum()
    }
}

fn start(
    cpu: usize,
    mut turn: Turn,
    done: mpsc::Sender<io::Result<()>>,
) -> anyhow::Result<(OwnThread, mpsc::Sender<()>)> {
    let (tell, told) = mpsc::channel();
    let (go, wait) = mpsc::channel();
    thread::spawn(move || {
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        let pinned = sched_setaffinity(None, &cpus).map(|()| OwnThread::current());
        let failed = pinned.is_err();
        if tell.send(pinned).is_err() || failed {
            return;
        }
        while wait.recv().is_ok() {
            let result = turn();
            let failed = result.is_err();
            if done.send(result).is_err() || failed {
                return;
            }
        }
    });
    Ok((told.recv().context("A thread of the load did not start")??, go))
}

/// The first thread passes the word to stop on to the second, so that no token is left in a pipe.
fn ping_pong(stop: &Arc<AtomicBool>) -> io::Result<[Turn; 2]> {
    let (mut from_second, mut to_first) = io::pipe()?;
    let (mut from_first, mut to_second) = io::pipe()?;
    let stop = Arc::clone(stop);
    let first = move || loop {
        let last = stop.load(Ordering::Relaxed);
        to_second.write_all(&[u8::from(last)])?;
        if last {
            return Ok(());
        }
        from_second.read_exact(&mut [0])?;
    };
    let second = move || loop {
        let mut last = [0];
        from_first.read_exact(&mut last)?;
        if last == [1] {
            return Ok(());
        }
        to_first.write_all(&[0])?;
    };
    Ok([Box::new(first), Box::new(second)])
}

fn yielding(stop: &Arc<AtomicBool>) -> Turn {
    let stop = Arc::clone(stop);
    Box::new(move || {
        while !stop.load(Ordering::Relaxed) {
            sched_yield();
        }
        Ok(())
    })
}

//! Reads on threads of their own, each of which is waited for until [`DEADLINE`] only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use tracing::warn;

use crate::{inventory::VmUuid, worker::Facts};

/// A read that takes longer is late. Its answer is used when it comes.
const DEADLINE: Duration = Duration::from_millis(200);

/// Most threads: up to this many domains whose reads hang delay no other.
const THREADS: usize = 8;

/// Reads about domains, one at a time for each.
pub(super) struct LateReads<T> {
    threads: Arc<Threads<T>>,
}

struct Threads<T> {
    facts: Facts,
    state: Mutex<State<T>>,
    jobs: Sender<Job<T>>,
    queue: Receiver<Job<T>>,
    /// Called when the answer of a late read has come.
    came: Box<dyn Fn(VmUuid) + Send + Sync>,
}

struct State<T> {
    threads: usize,
    /// Reads that are queued or under way.
    reads: usize,
    /// Reads that have begun.
    begun: u64,
    late: HashMap<VmUuid, Late<T>>,
}

/// A late read.
struct Late<T> {
    number: u64,
    answer: Option<T>,
    /// The domain was to be read again meanwhile.
    again: bool,
}

struct Job<T> {
    uuid: VmUuid,
    number: u64,
    read: Box<dyn FnOnce() -> T + Send>,
    reply: Sender<T>,
}

impl<T: Send + 'static> LateReads<T> {
    /// `came` is called, on another thread, when the answer of a late read has come, and the domain is to be read again.
    pub(super) fn new(facts: Facts, came: impl Fn(VmUuid) + Send + Sync + 'static) -> Self {
        let (jobs, queue) = unbounded();
        let state = Mutex::new(State { threads: 0, reads: 0, begun: 0, late: HashMap::new() });
        let came = Box::new(came);
        Self { threads: Arc::new(Threads { facts, state, jobs, queue, came }) }
    }

    /// Forgets late reads. Their answers are not used.
    pub(super) fn forget(&self) {
        self.threads.state().late.clear();
    }

    /// A domain has changed. The answer of a late read of it may be older than that: then the domain is read once more.
    pub(super) fn note_change(&self, uuid: VmUuid) {
        if let Some(late) = self.threads.state().late.get_mut(&uuid) {
            late.again = true;
        }
    }

    /// The answer of a read of this domain; `None` = it is late. A read is not begun while another one of the domain is late;
    /// the answer of that one is returned as soon as it has come.
    pub(super) fn read(
        &self,
        uuid: VmUuid,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let threads = &self.threads;
        let (reply, answer) = bounded(1);
        let mut state = threads.state();
        if let Some(late) = state.late.get_mut(&uuid) {
            let Some(answer) = late.answer.take() else {
                late.again = true;
                return None;
            };
            let again = late.again;
            state.late.remove(&uuid);
            drop(state);
            if again {
                (threads.came)(uuid);
            }
            return Some(answer);
        }
        state.reads += 1;
        state.begun += 1;
        let number = state.begun;
        let late = Late { number, answer: None, again: false };
        let has_thread = state.reads <= THREADS;
        // The queue lives as long as this.
        let _ = threads.jobs.send(Job { uuid, number, read: Box::new(read), reply });
        if !has_thread {
            state.late.insert(uuid, late);
            return None;
        }
        if state.reads > state.threads && start(threads) {
            state.threads += 1;
        }
        drop(state);
        answer.recv_timeout(DEADLINE).ok().or_else(|| {
            let mut state = threads.state();
            // It may have come since.
            let answer = answer.try_recv().ok();
            if answer.is_none() {
                state.late.insert(uuid, late);
            }
            answer
        })
    }
}

fn start<T: Send + 'static>(threads: &Arc<Threads<T>>) -> bool {
    let owned = Arc::clone(threads);
    let name = "libvirt xml".to_owned();
    match thread::Builder::new().name(name).spawn(move || owned.run()) {
        Ok(_) => true,
        Err(error) => {
            warn!("No thread for the XML of domains: {error}");
            false
        }
    }
}

impl<T> Threads<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        // A thread that panicked left the state whole: each change is one assignment.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let _end = self.facts.end_guard("libvirt xml");
        for Job { uuid, number, read, reply } in &self.queue {
            let answer = read();
            let mut state = self.state();
            state.reads -= 1;
            match state.late.get_mut(&uuid) {
                Some(late) if late.number == number => {
                    late.answer = Some(answer);
                    drop(state);
                    (self.came)(uuid);
                }
                // Fails if the read was forgotten. Under the lock: it is waited for, or late.
                _ => drop(reply.send(answer)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::Receiver;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    const fn uuid(number: u8) -> VmUuid {
        VmUuid::of_bytes([number; 16])
    }

    fn reads() -> (LateReads<u32>, Receiver<VmUuid>) {
        let (sender, came) = unbounded();
        let facts = Facts::new(unbounded().0, tokio::sync::mpsc::unbounded_channel().0);
        (LateReads::new(facts, move |uuid| sender.send(uuid).unwrap()), came)
    }

    #[test]
    fn a_read_that_hangs_delays_no_other_and_its_answer_is_used_when_it_comes() {
        let (reads, came) = reads();
        assert_eq!(reads.read(uuid(1), || 1), Some(1));
        let (end, hangs) = bounded(1);
        assert_eq!(reads.read(uuid(1), move || hangs.recv().unwrap()), None);
        assert_eq!(reads.read(uuid(2), || 2), Some(2));
        end.send(3).unwrap();
        assert_eq!(came.recv_timeout(SOON), Ok(uuid(1)));
        assert_eq!(reads.read(uuid(1), || 4), Some(3));
        assert_eq!(reads.read(uuid(1), || 5), Some(5));
        assert!(came.is_empty());
    }

    #[test]
    fn a_domain_that_changes_while_its_read_is_late_is_read_again() {
        let (reads, came) = reads();
        let (end, hangs) = bounded(1);
        assert_eq!(reads.read(uuid(1), move || hangs.recv().unwrap()), None);
        assert_eq!(reads.read(uuid(1), || 2), None);
        end.send(1).unwrap();
        assert_eq!(came.recv_timeout(SOON), Ok(uuid(1)));
        assert_eq!(reads.read(uuid(1), || 3), Some(1));
        assert_eq!(came.recv_timeout(SOON), Ok(uuid(1)));
        assert_eq!(reads.read(uuid(1), || 3), Some(3));
    }

    #[test]
    fn a_domain_that_changes_before_the_late_answer_is_used_is_read_again() {
        let (reads, came) = reads();
        let (end, hangs) = bounded(1);
        reads.note_change(uuid(1));
        assert_eq!(reads.read(uuid(1), move || hangs.recv().unwrap()), None);
        end.send(1).unwrap();
        assert_eq!(came.recv_timeout(SOON), Ok(uuid(1)));
        // The event is handled together with that of the answer.
        reads.note_change(uuid(1));
        assert_eq!(reads.read(uuid(1), || 2), Some(1));
        assert_eq!(came.recv_timeout(SOON), Ok(uuid(1)));
        assert_eq!(reads.read(uuid(1), || 2), Some(2));
        assert!(came.is_empty());
    }

    #[test]
    fn more_reads_than_threads_are_late_at_once_and_answered_later() {
        let (reads, came) = reads();
        let (end, hangs) = bounded::<u32>(32);
        for number in 0..10 {
            let hangs = hangs.clone();
            assert_eq!(reads.read(uuid(number), move || hangs.recv().unwrap()), None);
        }
        for number in 0..10 {
            end.send(number).unwrap();
        }
        let mut all: Vec<_> = (0..10).map(|_| came.recv_timeout(SOON).unwrap()).collect();
        all.sort_unstable();
        assert_eq!(all, (0..10).map(uuid).collect::<Vec<_>>());
        assert_eq!(reads.read(uuid(20), || 20), Some(20));
    }

    #[test]
    fn a_forgotten_read_is_not_answered() {
        let (reads, came) = reads();
        let (end, hangs) = bounded(1);
        assert_eq!(reads.read(uuid(1), move || hangs.recv().unwrap()), None);
        reads.forget();
        assert_eq!(reads.read(uuid(1), || 2), Some(2));
        end.send(1).unwrap();
        assert_eq!(reads.read(uuid(1), || 3), Some(3));
        assert!(came.is_empty());
    }
}

//! Which threads have made the VMs of which process: the kernel reports the end of a VM with the id of the thread that made it.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{TrackedProcess, TrackedProcesses};

/// Threads that have made VMs, of one process, that are remembered.
pub(super) const MAX_CREATORS: usize = 64;

/// Threads that have made VMs of processes that have not been scanned since, that are remembered.
const MAX_MAKERS: usize = 1024;

/// Shortest interval between scans of all VMs whose makers are not known. Any user can have VMs end that are of no known process.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(30);

/// The threads that have made VMs since the agent started, each with its process.
#[derive(Debug, Default)]
pub(super) struct Makers(VecDeque<(u32, u32)>);

/// When the VMs whose makers are not known are scanned.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    due: Option<Instant>,
    last: Option<Instant>,
}

impl Makers {
    fn note(&mut self, tid: u32, pid: u32) {
        if self.0.len() >= MAX_MAKERS {
            self.0.pop_front();
        }
        self.0.push_back((tid, pid));
    }

    /// The threads of this process.
    fn take(&mut self, pid: u32) -> Vec<u32> {
        let mut found = Vec::new();
        self.0.retain(|(tid, of)| {
            if *of == pid {
                found.push(*tid);
            }
            *of != pid
        });
        found
    }
}

impl Rounds {
    fn ask(&mut self, now: Instant) {
        let earliest = self.last.map_or(now, |last| now.max(last + BETWEEN_ROUNDS));
        self.due.get_or_insert(earliest);
    }

    fn take(&mut self, now: Instant) -> bool {
        let is_due = self.due.take_if(|due| *due <= now).is_some();
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

impl TrackedProcess {
    fn note_creators(&mut self, tids: impl IntoIterator<Item = u32>) {
        let room = MAX_CREATORS.saturating_sub(self.creators.len());
        self.creators.extend(tids.into_iter().take(room));
    }
}

impl TrackedProcesses {
    /// Notes that a thread of this process has made a VM.
    pub(in super::super) fn note_creator(&mut self, tid: u32, pid: u32) {
        match self.known.get_mut(&pid) {
            Some(known) => known.note_creators([tid]),
            None => self.makers.note(tid, pid),
        }
    }

    /// Notes the threads that a scan has found to have made the VMs of a process, and those that were noted before the scan. A
    /// thread may end before its VM does.
    pub(super) fn note_found(&mut self, pid: u32, found: impl IntoIterator<Item = u32>) {
        let noted = self.makers.take(pid);
        if let Some(known) = self.known.get_mut(&pid) {
            known.note_creators(noted.into_iter().chain(found));
        }
    }

    /// The process in which this thread, which may have ended, has made a VM. `None` = it is not known, and may be one of those whose
    /// makers are not known: they are scanned when [`next_round`](Self::next_round) says.
    pub(in super::super) fn creator(&mut self, tid: u32, now: Instant) -> Option<u32> {
        let has_made =
            |(pid, known): &(&u32, &TrackedProcess)| **pid == tid || known.creators.contains(&tid);
        let found = self.known.iter().find(has_made).map(|(pid, _)| *pid);
        if found.is_none() && self.unclear_makers().next().is_some() {
            self.rounds.ask(now);
        }
        found
    }

    fn unclear_makers(&self) -> impl Iterator<Item = u32> {
        let unclear = self.known.iter();
        unclear
            .filter(|(_, known)| known.vm.has_kvm && known.creators.is_empty())
            .map(|(pid, _)| *pid)
    }

    /// When VMs are scanned whose makers are not known; `None` = no VM has ended that may be one of theirs.
    pub(in super::super) const fn next_round(&self) -> Option<Instant> {
        self.rounds.due
    }

    /// The VMs to be scanned because their makers are not known.
    pub(in super::super) fn take_round(&mut self, now: Instant) -> Vec<u32> {
        if self.rounds.take(now) { self.unclear_makers().collect() } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vms_that_end_without_end_make_a_round_in_thirty_seconds() {
        let (mut rounds, start, mut made) = (Rounds::default(), Instant::now(), 0);
        for at in 0..120_000 {
            let now = start + Duration::from_millis(at);
            rounds.ask(now);
            made += u32::from(rounds.take(now));
        }
        assert_eq!(made, 4);
        // The first one after a rest is at once.
        let later = start + Duration::from_secs(600);
        rounds.due = None;
        rounds.ask(later);
        assert!(rounds.take(later) && !rounds.take(later));
    }

    #[test]
    fn the_makers_of_a_process_are_known_before_it_is_scanned() {
        let mut makers = Makers::default();
        makers.note(11, 10);
        makers.note(21, 20);
        makers.note(12, 10);
        assert_eq!(makers.take(10), [11, 12]);
        assert!(makers.take(10).is_empty());
        for tid in 0..10_000 {
            makers.note(tid, tid);
        }
        assert_eq!(makers.0.len(), MAX_MAKERS);
    }
}

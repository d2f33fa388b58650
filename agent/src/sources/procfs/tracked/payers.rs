//! Whose share of the CPU time the scan of a process costs.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    time::{Duration, Instant},
};

use super::{super::process, TrackedProcesses};
use crate::account::Account;

/// For how long it is not asked again about a process that is no VM: as long as the scans that follow its start.
const HOLDS: Duration = Duration::from_secs(2);

/// Most processes that are remembered.
const MAX_PAYERS: usize = 4096;

/// Whose share of the CPU time a scan costs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in super::super) enum Payer {
    /// The process has ended.
    Gone,
    /// Root's, or that of a domain of root's libvirt: no share limits it.
    Host,
    /// On this account.
    Account(Account),
}

/// What was found out about processes that are no VMs, by process id.
#[derive(Debug, Default)]
pub(super) struct Payers(HashMap<u32, Found>);

#[derive(Debug)]
struct Found {
    payer: Payer,
    /// The inode of the directory in procfs: that of another process with the id is another one.
    inode: u64,
    until: Instant,
}

impl Payers {
    /// `ask` reads files of the process, of which one waits for a lock of all control groups. Its error is not remembered.
    fn get(
        &mut self,
        pid: u32,
        inode: u64,
        now: Instant,
        ask: impl FnOnce() -> io::Result<Payer>,
    ) -> io::Result<Payer> {
        if let Some(found) = self.0.get(&pid)
            && found.inode == inode
            && now < found.until
        {
            return Ok(found.payer);
        }
        if self.0.len() >= MAX_PAYERS {
            self.0.clear();
        }
        let payer = ask()?;
        self.0.insert(pid, Found { payer, inode, until: now + HOLDS });
        Ok(payer)
    }
}

impl TrackedProcesses {
    /// Whose share of the CPU time a scan of this process costs.
    ///
    /// # Errors
    ///
    /// If the agent lacks descriptors or memory.
    pub(in super::super) fn payer(&mut self, pid: u32, now: Instant) -> io::Result<Payer> {
        if !process::is_there(pid) {
            self.payers.0.remove(&pid);
            return Ok(Payer::Gone);
        }
        // As its last scan found it.
        if let Some(known) = self.known.get(&pid) {
            let account = known.vm.account.filter(|_| !known.is_domain);
            return Ok(account.map_or(Payer::Host, Payer::Account));
        }
        let readers = &self.readers;
        let ask = || Ok(readers.share_of(pid)?.map_or(Payer::Host, Payer::Account));
        // It has just ended; the next look tells.
        let Ok(dir) = fs::metadata(self.roots.proc.join(pid.to_string())) else { return ask() };
        self.payers.get(pid, dir.ino(), now, ask)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_a_process_is_that_is_seen_again_and_again_is_asked_once_in_two_seconds() {
        let (mut payers, start, mut asked) = (Payers::default(), Instant::now(), 0);
        for at in 0..10_000 {
            let payer = payers.get(7, 1, start + Duration::from_millis(at), || {
                asked += 1;
                Ok(Payer::Account(Account::User(1000)))
            });
            assert_eq!(payer.unwrap(), Payer::Account(Account::User(1000)));
        }
        assert_eq!(asked, 5);
        let other = payers.get(7, 2, start + Duration::from_millis(9_999), || {
            Ok(Payer::Account(Account::User(1001)))
        });
        assert_eq!(
            other.unwrap(),
            Payer::Account(Account::User(1001)),
            "another process with the id"
        );
        for pid in 0..100_000 {
            payers.get(pid, 1, start, || Ok(Payer::Host)).unwrap();
        }
        assert!(payers.0.len() <= MAX_PAYERS);
    }

    #[test]
    fn what_cannot_be_found_out_for_want_of_descriptors_is_asked_again() {
        let (mut payers, now) = (Payers::default(), Instant::now());
        let lacks = || Err(rustix::io::Errno::MFILE.into());
        assert!(payers.get(7, 1, now, lacks).is_err());
        assert_eq!(payers.get(7, 1, now, || Ok(Payer::Host)).unwrap(), Payer::Host);
    }
}

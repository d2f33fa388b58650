//! On whose account a process is: who could start more of its kind without end.

use std::{io, path::Path};

use super::{machine, process::Process, shortage::if_there};
use crate::account::Account;

/// The account of a process; `None` = the process is root's, or of a domain of root's libvirt. Does not block.
pub(super) fn of(proc_root: &Path, pid: u32) -> Option<Account> {
    let found = Process::hold(proc_root, pid).and_then(|process| of_process(&process));
    // Of a process that is gone nothing is known.
    found.unwrap_or(Some(Account::Ended))
}

/// The account of a process that is held, as [`of`].
///
/// # Errors
///
/// Those of reading procfs.
pub(super) fn of_process(process: &Process) -> io::Result<Option<Account>> {
    let groups = if_there(process.read("cgroup"))?.unwrap_or_default();
    // A user can make any process look like another VM, but cannot put it into a control group of libvirt.
    if machine::parse(&groups).is_some() {
        return Ok(None);
    }
    let user = process.user()?;
    Ok(Some(Account::User(user)).filter(|_| user != 0))
}

//! On whose account a process is: who could start more of its kind without end. The user id of a process alone does not tell: root of a
//! container has that of the host's root, and a user namespace gives its maker thousands of them (subuid(5)). What namespaces do not
//! tell, the user id tells.

use std::{io, path::Path};

use super::{
    machine,
    namespaces::{Container, Namespaces, Place},
    process::Process,
    shortage::if_there,
    subordinate_ids,
};
use crate::account::Account;

/// The account of a process; `None` = the process is root's and in no container, or of a domain of root's libvirt. Does not block, and
/// reads no files but the process's. Before Linux 6.11 the processes in containers and sandboxes are not told apart.
///
/// # Errors
///
/// If the agent lacks descriptors or memory.
pub(super) fn of(proc_root: &Path, pid: u32) -> io::Result<Option<Account>> {
    let found = Process::hold(proc_root, pid).and_then(|process| {
        let namespaces = Namespaces::of(&process, pid)?;
        find(&process, &namespaces)
    });
    // Of a process that is gone nothing is known.
    Ok(if_there(found)?.unwrap_or(Some(Account::Ended)))
}

/// The account of a process that is held, as [`of`], on any kernel. May block.
///
/// # Errors
///
/// Those of reading procfs. What the agent may not see of namespaces is none.
pub(super) fn of_process(process: &Process, pid: u32) -> io::Result<Option<Account>> {
    find(process, &Namespaces::of(process, pid)?.or_links())
}

fn find(process: &Process, namespaces: &Namespaces<'_>) -> io::Result<Option<Account>> {
    let groups = process.read("cgroup");
    // Some kernels show no path of more than 4,096 bytes (proc_cgroup_show()), and a user may make groups below the own one.
    let hides_session =
        groups.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::InvalidFilename);
    let groups = if_there(groups)?.unwrap_or_default();
    // A user can make any process look like another VM, but cannot put it into a control group of libvirt.
    if machine::parse(&groups).is_some() {
        return Ok(None);
    }
    let container = match namespaces.container()? {
        // What the agent may not see of a process in its own PID namespace does not matter.
        Place::Unclear if !process.is_nested()? => Place::Own,
        container => container,
    };
    // Only what matters is asked.
    let maker = match container {
        Place::Below(Container { is_roots: true, .. }) => Place::Unclear,
        _ => namespaces.maker()?,
    };
    // Last: the process is still there, so that the namespaces were its own, and not those of a later one with its id.
    let account = judge(process.user()?, session(&groups), container, maker);
    Ok(account.map(|account| match account {
        Account::User(user) => Account::User(subordinate_ids::owner(user)),
        // A sandbox of a user's session would be a container each time.
        Account::Container(_) if hides_session => Account::Nested,
        Account::Container(_) | Account::Nested | Account::Ended => account,
    }))
}

/// The account of a process of `user`, the real user id as the agent sees it, that belongs to a login session of the user `session`.
/// `maker` is who made its user namespace.
fn judge(
    user: u32,
    session: Option<u32>,
    container: Place<Container>,
    maker: Place<u32>,
) -> Option<Account> {
    let container = match (container, maker) {
        (Place::Below(Container { inode, is_roots: true }), _) => Some(Account::Container(inode)),
        // It may be root's container, in which any user id can be taken.
        (Place::Unclear, Place::Own | Place::Unclear | Place::Below(0)) => Some(Account::Nested),
        _ => None,
    };
    if let Some(container) = container {
        // A program with the rights of root, such as a sandbox, may have made it for a user.
        let session = session.filter(|user| *user != 0);
        return Some(session.map_or(container, Account::User));
    }
    let user = match maker {
        Place::Below(maker) if maker != 0 => maker,
        Place::Own | Place::Below(_) | Place::Unclear => user,
    };
    Some(Account::User(user)).filter(|_| user != 0)
}

/// The user to whose login sessions a control group belongs: `/user.slice/user-1000.slice/…` (systemd-logind.service(8)). Only root
/// can move a process there that was not started there.
fn session(groups: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(groups);
    text.lines().find_map(|line| {
        // hierarchy-ID:controllers:path
        let path = line.splitn(3, ':').nth(2)?;
        let slice = path.strip_prefix("/user.slice/user-")?.split('/').next()?;
        slice.strip_suffix(".slice")?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        process::{Child, Command, Stdio},
    };

    use super::*;
    use Account::User;

    const fn container(is_roots: bool) -> Place<Container> {
        Place::Below(Container { inode: 7, is_roots })
    }

    #[test]
    fn root_of_a_container_is_not_root_of_the_host() {
        use Place::{Below, Own, Unclear};
        const IN_7: Option<Account> = Some(Account::Container(7));
        for (user, session, pids, maker, account) in [
            (0, None, Own, Own, None),
            (1000, None, Own, Own, Some(User(1000))),
            // A container without a user namespace: any of its users, also one whose number a user of the host has.
            (0, None, container(true), Own, IN_7),
            (1000, None, container(true), Own, IN_7),
            // With one that root has made, and with one that was made within.
            (100_000, None, container(true), Below(0), IN_7),
            (1000, None, container(true), Below(1000), IN_7),
            // Of a sandbox that root's program has made for a user; of one that root has in a session.
            (1000, Some(1000), container(true), Own, Some(User(1000))),
            (0, Some(0), container(true), Own, IN_7),
            // A user's own container, and a namespace without one, with any of the user's subordinate ids.
            (1000, None, container(false), Below(1000), Some(User(1000))),
            (165_536, Some(1000), container(false), Below(1000), Some(User(1000))),
            (165_537, None, Own, Below(1000), Some(User(1000))),
            // In a user namespace that root has made, such as that of a service with PrivateUsers=.
            (0, None, Own, Below(0), None),
            (100_001, None, Own, Below(0), Some(User(100_001))),
            // The agent may not see the namespaces.
            (0, None, Own, Unclear, None),
            (0, None, Unclear, Own, Some(Account::Nested)),
            (1000, None, Unclear, Unclear, Some(Account::Nested)),
            (1000, None, Unclear, Below(0), Some(Account::Nested)),
            (1000, Some(1000), Unclear, Unclear, Some(User(1000))),
            (1000, None, Own, Unclear, Some(User(1000))),
            (1000, None, Unclear, Below(1001), Some(User(1001))),
        ] {
            let is = judge(user, session, pids, maker);
            assert_eq!(is, account, "{user} {session:?} {pids:?} {maker:?}");
        }
    }

    #[test]
    fn the_slice_of_a_user_tells_the_session() {
        for (text, user) in [
            ("0::/user.slice/user-1000.slice/session-3.scope\n", Some(1000)),
            ("12:pids:/user.slice/user-0.slice\n0::/\n", Some(0)),
            ("0::/system.slice/user.slice/user-1000.slice", None),
            ("0::/user.slice/user-x.slice", None),
            ("0::/user.slice", None),
            ("x", None),
        ] {
            assert_eq!(session(text.as_bytes()), user, "{text}");
        }
    }

    /// A process in namespaces of its own; `None` = this user may not make them. `as_user`: the user who makes them.
    fn unshared(options: &[&str], as_user: Option<u32>) -> Option<(Child, u32)> {
        let mut command = match as_user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user.to_string(), "--clear-groups", "unshare"]);
                command
            }
            None => Command::new("unshare"),
        };
        // Without a process of its own: the children are looked for.
        let told = "echo; exec sleep 60";
        command.args(options).args(["sh", "-c", told]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().ok()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take()?).read_line(&mut line).ok()?;
        if line.is_empty() {
            let _ = child.wait();
            return None;
        }
        // Without --fork, the program is executed in the process itself; else in its child.
        let pid = child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let inner = children.ok().and_then(|text| text.split(' ').next()?.parse().ok());
        Some((child, inner.unwrap_or(pid)))
    }

    /// A directory such as `/proc`, in which the control groups of this process are too long to be shown.
    fn hides_its_groups(pid: u32) -> tempfile::TempDir {
        let proc_root = tempfile::tempdir().unwrap();
        let dir = proc_root.path().join(pid.to_string());
        std::fs::create_dir(&dir).unwrap();
        std::fs::copy(format!("/proc/{pid}/status"), dir.join("status")).unwrap();
        std::os::unix::fs::symlink("x".repeat(300), dir.join("cgroup")).unwrap();
        proc_root
    }

    #[test]
    fn the_kernel_tells_who_made_the_namespaces_of_a_process() {
        let proc_root = Path::new("/proc");
        let own = rustix::process::geteuid().as_raw();
        let is_root = own == 0;
        let of_own = Some(User(own)).filter(|_| !is_root);
        // The test itself may run in a session or a container, which is its host then.
        assert_eq!(of(proc_root, std::process::id()).unwrap(), of_own);
        let user = if is_root { 1000 } else { own };
        let as_user = Some(user).filter(|_| is_root);
        let mut found = Vec::new();
        for (options, as_user, expected) in [
            (&["--user", "--map-root-user"][..], as_user, Some(User(user))),
            (&["--user", "--map-root-user", "--pid", "--fork"], as_user, Some(User(user))),
            (&["--user", "--map-root-user"], None, of_own),
            (&["--pid", "--fork"], None, None),
            // As those of LXD, systemd-nspawn -U and Docker with userns-remap: the PID namespace belongs to the user namespace.
            (&["--user", "--map-root-user", "--pid", "--fork"], None, of_own),
        ] {
            let Some((mut child, pid)) = unshared(options, as_user) else { continue };
            let account = of(proc_root, pid).unwrap();
            if as_user.is_none() && is_root && options.contains(&"--pid") {
                let is_container = matches!(account, Some(Account::Container(_) | User(_)));
                assert!(is_container, "{options:?} {account:?}");
            } else if options[0] != "--pid" {
                assert_eq!(account, expected, "{options:?} {as_user:?}");
            }
            found.push(account);
            if let Some(Account::Container(_)) = account {
                let hidden = hides_its_groups(pid);
                let process = Process::hold(hidden.path(), pid).unwrap();
                let account = find(&process, &Namespaces::of(&process, pid).unwrap()).unwrap();
                assert_eq!(account, Some(Account::Nested), "it may be in a session");
            }
            if pid != child.id() {
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // Which of these namespaces may be made depends on the machine.
        eprintln!("seen: {found:?}");
    }
}

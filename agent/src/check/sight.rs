//! Whether the files of VMs can be seen where a sandbox hides them from the agent itself: a private `/dev`, empty homes.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::process::{geteuid, getppid};

use super::Check;

/// Places that `PrivateDevices=` and `ProtectHome=` cover.
const PLACES: [(&str, &str); 3] =
    [("/dev", "PrivateDevices="), ("/home", "ProtectHome="), ("/root", "ProtectHome=")];

pub(super) fn check() -> Check {
    let first = PathBuf::from("/proc/1/root");
    let mut seen = read(&first);
    let mut root = first;
    // In some containers root may not read the first process, but may read those of the user who runs the check.
    if seen.is_err()
        && let Some(parent) = getppid().map(|parent| format!("/proc/{parent}"))
        && fs::metadata(&parent)
            .is_ok_and(|parent| geteuid().is_root() || parent.uid() != geteuid().as_raw())
    {
        root = Path::new(&parent).join("root");
        seen = read(&root);
    }
    let covered = PLACES.iter().filter(|(place, _)| is_covered(&root, place)).copied();
    assess(&root, &covered.collect::<Vec<_>>(), seen)
}

/// Reads the `/dev` of the host by way of another user's process.
fn read(root: &Path) -> io::Result<()> {
    fs::read_dir(root.join("dev")).map(drop)
}

/// Whether something else is there than on the host, as far as that is known.
fn is_covered(root: &Path, place: &str) -> bool {
    let identity = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let of_host = identity(&root.join(place.trim_start_matches('/')));
    of_host.is_some_and(|of_host| identity(Path::new(place)) != Some(of_host))
}

/// `seen` is the result of reading below the root of another user's process.
fn assess(root: &Path, covered: &[(&str, &str)], seen: io::Result<()>) -> Check {
    const NAME: &str = "files of VMs";
    let covered: Vec<String> =
        covered.iter().map(|(place, setting)| format!("{place} ({setting})")).collect();
    match seen {
        Ok(()) if covered.is_empty() => {
            Check::ok(NAME, "seen in each VM's own root, /proc/PID/root")
        }
        Ok(()) => Check::ok(
            NAME,
            format!(
                "seen in each VM's own root, /proc/PID/root; {} of kvmeter itself hides none",
                covered.join(", ")
            ),
        ),
        Err(error) => Check::warn(
            NAME,
            format!(
                "{}: {error}; disks of other users' VMs have no size, and no counters where only their path is known",
                root.display()
            ),
            "run kvmeter with CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH in the host's user namespace, without ProtectProc= and PrivateUsers=",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn a_private_dev_hides_nothing_while_other_roots_can_be_read() {
        let root = Path::new("/proc/1/root");
        assert_eq!(assess(root, &[], Ok(())).verdict, Verdict::Ok);
        let private = assess(root, &PLACES[..1], Ok(()));
        assert_eq!(private.verdict, Verdict::Ok);
        assert!(private.found.contains("/dev (PrivateDevices=) of kvmeter itself hides none"));
        let blind = assess(root, &[], Err(io::ErrorKind::PermissionDenied.into()));
        assert!(matches!(&blind.verdict, Verdict::Warn(fix) if fix.contains("CAP_SYS_PTRACE")));
    }
}

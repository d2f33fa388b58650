//! Filesystems that must be mounted, and directories that must be writable.

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, AtFlags, CWD, accessat, statfs};

use super::{Check, Judged};
use crate::{
    config::Config,
    probe::{BPF_FS_MAGIC, ProbeError, check_owners, with_causes},
};

/// Directory in which KVM lists the threads of its vCPUs.
const KVM_DEBUGFS: &str = "/sys/kernel/debug/kvm";

pub(super) fn checks(config: &Config, judged: &Judged) -> Vec<Check> {
    let pin_dir = &config.probe.pin_dir;
    let beside = nearest(pin_dir);
    let is_made = judged.service().is_some_and(|service| service.will_prepare(pin_dir));
    let mut checks = vec![assess_bpffs(
        pin_dir,
        statfs(&beside).map(|found| found.f_type.cast_unsigned()).map_err(io::Error::from),
        // It is not the service that makes the directory, but `kvmeter prepare` before it, as root.
        if is_made { Ok(()) } else { writable(&beside) },
    )];
    // The user that the service runs as, which need not be the one of this check.
    let of_service = std::fs::metadata(&config.state.dir).map(|state| state.uid()).ok();
    checks.push(assess_owner(pin_dir, of_service));
    checks.push(assess_debugfs(std::fs::read_dir(KVM_DEBUGFS).map(drop)));
    for (key, dir) in
        [("state.dir", &config.state.dir), ("state.runtime_dir", &config.state.runtime_dir)]
    {
        let is_made = judged.service().is_some_and(|service| service.will_make(dir));
        checks.push(if is_made {
            Check::ok(
                key,
                format!("{}: systemd makes it and gives it to the service", dir.display()),
            )
        } else {
            assess_dir(key, dir, holds_files(&nearest(dir)))
        });
    }
    checks
}

/// `dir` itself; if it is missing, the nearest directory above it that exists.
fn nearest(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or_else(|| Path::new("/")).to_owned()
}

fn writable(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// Whether a file can be made in `dir`. Makes one, without a name where the filesystem has such files: the permissions alone do not
/// tell, for root has them in procfs, too.
fn holds_files(dir: &Path) -> io::Result<()> {
    writable(dir)?;
    tempfile::tempfile_in(dir).map(drop)
}

/// `magic` and `writable` are those of `pin_dir`, or of the nearest directory above it that exists.
fn assess_bpffs(pin_dir: &Path, magic: io::Result<u64>, writable: io::Result<()>) -> Check {
    const NAME: &str = "bpffs";
    let pin_dir = pin_dir.display();
    match (magic, writable) {
        (Ok(BPF_FS_MAGIC), Ok(())) => Check::ok(NAME, pin_dir.to_string()),
        (Ok(BPF_FS_MAGIC), Err(e)) => Check::fail(
            NAME,
            format!("{pin_dir} cannot be written: {e}"),
            "run as root, and list its bpffs in ReadWritePaths= of the service",
        ),
        (Ok(_), _) => Check::fail(
            NAME,
            format!("probe.pin_dir {pin_dir} is not below a bpffs"),
            "mount -t bpf bpf /sys/fs/bpf, or set probe.pin_dir to a place below one",
        ),
        (Err(e), _) => Check::fail(NAME, format!("{pin_dir}: {e}"), "mount -t bpf bpf /sys/fs/bpf"),
    }
}

/// `of_service`: the owner of the state directory, whose agent may count there, too.
fn assess_owner(pin_dir: &Path, of_service: Option<u32>) -> Check {
    const NAME: &str = "pin directory";
    let is_own = check_owners(pin_dir, &[]).is_ok();
    match check_owners(pin_dir, of_service.as_slice()) {
        Ok(()) if is_own => {
            Check::ok(NAME, format!("{}: no other user can change it", pin_dir.display()))
        }
        Ok(()) => Check::ok(
            NAME,
            format!(
                "{}: the service's, as state.dir is; an agent that another user starts, root too, serves no counters",
                pin_dir.display()
            ),
        ),
        Err(ProbeError::NotOurs { dir, why }) => Check::fail(
            NAME,
            format!("{} {why}: whoever can change the pins can end the counting", dir.display()),
            format!("rm -r {}, as root, or set probe.pin_dir to another place", dir.display()),
        ),
        Err(error) => Check::fail(NAME, with_causes(&error), "run as root"),
    }
}

fn assess_debugfs(opened: io::Result<()>) -> Check {
    const NAME: &str = "debugfs";
    match opened {
        Ok(()) => Check::ok(NAME, KVM_DEBUGFS),
        Err(e) => Check::warn(
            NAME,
            format!("{KVM_DEBUGFS}: {e}; vCPUs are known by their threads' names instead"),
            if e.kind() == io::ErrorKind::PermissionDenied {
                "run as root"
            } else {
                "mount -t debugfs debugfs /sys/kernel/debug, and load the kvm module"
            },
        ),
    }
}

fn assess_dir(key: &str, dir: &Path, writable: io::Result<()>) -> Check {
    let dir = dir.display();
    match writable {
        Ok(()) => Check::ok(key, dir.to_string()),
        Err(e) => {
            let need = match e.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "make room there",
                _ => "run as root on a filesystem for files that is mounted rw",
            };
            Check::fail(
                key,
                format!("{dir} cannot be written: {e}"),
                format!("{need}, or set {key} to another directory"),
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use std::{fs, os::unix::fs::PermissionsExt as _};

    fn denied() -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn for_a_pin_dir_outside_a_bpffs_the_fix_is_the_mount() {
        let dir = Path::new("/sys/fs/bpf/kvmeter");
        assert_eq!(assess_bpffs(dir, Ok(BPF_FS_MAGIC), Ok(())).verdict, Verdict::Ok);
        for check in [
            assess_bpffs(dir, Ok(0x6265_6572), Ok(())),
            assess_bpffs(dir, Err(io::ErrorKind::NotFound.into()), denied()),
        ] {
            assert!(
                matches!(&check.verdict, Verdict::Fail(fix) if fix.starts_with("mount -t bpf bpf /sys/fs/bpf")),
                "{check:?}"
            );
        }
        let closed = assess_bpffs(dir, Ok(BPF_FS_MAGIC), denied());
        assert!(matches!(&closed.verdict, Verdict::Fail(fix) if fix.starts_with("run as root")));
    }

    #[test]
    fn a_real_directory_is_no_bpffs() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.probe.pin_dir = dir.path().join("pins/deeper");
        let bpffs = checks(&config, &Judged::Caller).swap_remove(0);
        assert!(bpffs.found.ends_with("is not below a bpffs"), "{bpffs:?}");
    }

    #[test]
    fn a_pin_directory_that_others_can_change_fails() {
        let dir = tempfile::tempdir().unwrap();
        let pins = dir.path().join("pins");
        let verdict = || assess_owner(&pins, None).verdict;
        assert_eq!(verdict(), Verdict::Ok, "it is made below a directory of kvmeter's own");
        fs::create_dir(&pins).unwrap();
        assert_eq!(verdict(), Verdict::Ok);
        fs::set_permissions(&pins, fs::Permissions::from_mode(0o770)).unwrap();
        let Verdict::Fail(fix) = verdict() else { panic!("mode 0770") };
        assert!(fix.starts_with("rm -r ") && fix.contains("/pins"), "{fix}");
        fs::set_permissions(&pins, fs::Permissions::from_mode(0o1777)).unwrap();
        assert!(matches!(verdict(), Verdict::Fail(_)));
        fs::set_permissions(&pins, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
        assert_eq!(verdict(), Verdict::Ok, "others cannot rename what is not theirs");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(verdict(), Verdict::Fail(_)));
    }

    #[test]
    fn without_debugfs_the_check_warns() {
        assert_eq!(assess_debugfs(Ok(())).verdict, Verdict::Ok);
        let missing = assess_debugfs(Err(io::ErrorKind::NotFound.into()));
        assert!(
            matches!(&missing.verdict, Verdict::Warn(fix) if fix.starts_with("mount -t debugfs"))
        );
        assert_eq!(assess_debugfs(denied()).verdict, Verdict::Warn("run as root".into()));
    }

    #[test]
    fn a_place_where_no_file_can_be_made_fails() {
        let mut config = Config::default();
        config.state.dir = "/proc/kvmeter".into();
        config.state.runtime_dir = "/sys/kvmeter".into();
        let checks = checks(&config, &Judged::Caller);
        for key in ["state.dir", "state.runtime_dir"] {
            let check = checks.iter().find(|check| check.name == key).unwrap();
            assert!(check.fails(), "{check:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        config.state.dir = dir.path().join("a/b");
        let made = super::checks(&config, &Judged::Caller);
        assert_eq!(
            made.iter().find(|check| check.name == "state.dir").unwrap().verdict,
            Verdict::Ok
        );
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_full_filesystem_needs_room_and_not_root() {
        let full = rustix::io::Errno::NOSPC;
        let check = assess_dir("state.dir", Path::new("/s"), Err(full.into()));
        assert_eq!(
            check.verdict,
            Verdict::Fail("make room there, or set state.dir to another directory".to_owned())
        );
    }

    #[test]
    fn a_missing_directory_is_assessed_by_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&dir.path().join("a/b/c")), dir.path());
        assert!(holds_files(dir.path()).is_ok());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let check = assess_dir("state.dir", &file, holds_files(&nearest(&file.join("below"))));
        assert!(
            matches!(&check.verdict, Verdict::Fail(fix) if fix.contains("set state.dir to another")),
            "{check:?}"
        );
    }
}

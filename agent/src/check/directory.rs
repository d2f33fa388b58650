//! File systems that must be mounted, and directories that must be writable.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat, statfs};

use super::Need;
use crate::config::Config;

/// `BPF_FS_MAGIC` of `include/uapi/linux/magic.h`.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// Where KVM tells the threads of its vCPUs.
const KVM_DEBUGFS: &str = "/sys/kernel/debug/kvm";

pub(super) fn needs(config: &Config) -> Vec<Need> {
    let pin_dir = &config.probe.pin_dir;
    let beside = nearest(pin_dir);
    let mut needs = vec![judge_bpffs(
        pin_dir,
        statfs(&beside).map(|found| found.f_type.cast_unsigned()).map_err(io::Error::from),
        writable(&beside),
    )];
    needs.push(judge_debugfs(std::fs::read_dir(KVM_DEBUGFS).map(drop)));
    for (key, dir) in
        [("state.dir", &config.state.dir), ("state.runtime_dir", &config.state.runtime_dir)]
    {
        needs.push(judge_dir(key, dir, writable(&nearest(dir))));
    }
    needs
}

/// `dir` itself, or while that is missing the directory in which it would be made.
fn nearest(dir: &Path) -> PathBuf {
    dir.ancestors().find(|dir| dir.exists()).unwrap_or_else(|| Path::new("/")).to_owned()
}

fn writable(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    Ok(accessat(CWD, dir, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)?)
}

/// `magic` and `writable` are those of `pin_dir`, or of the nearest directory above it that exists.
fn judge_bpffs(pin_dir: &Path, magic: io::Result<u64>, writable: io::Result<()>) -> Need {
    const NAME: &str = "bpffs";
    let pin_dir = pin_dir.display();
    match (magic, writable) {
        (Ok(BPF_FS_MAGIC), Ok(())) => Need::ok(NAME, pin_dir.to_string()),
        (Ok(BPF_FS_MAGIC), Err(e)) => Need::fail(
            NAME,
            format!("{pin_dir} cannot be written: {e}"),
            "run as root, and list its bpffs in ReadWritePaths= of the service",
        ),
        (Ok(_), _) => Need::fail(
            NAME,
            format!("probe.pin_dir {pin_dir} is not below a bpffs"),
            "mount -t bpf bpf /sys/fs/bpf, or set probe.pin_dir to a place below one",
        ),
        (Err(e), _) => Need::fail(NAME, format!("{pin_dir}: {e}"), "mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn judge_debugfs(opened: io::Result<()>) -> Need {
    const NAME: &str = "debugfs";
    match opened {
        Ok(()) => Need::ok(NAME, KVM_DEBUGFS),
        Err(e) => Need::warn(
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

fn judge_dir(key: &str, dir: &Path, writable: io::Result<()>) -> Need {
    let dir = dir.display();
    match writable {
        Ok(()) => Need::ok(key, dir.to_string()),
        Err(e) => Need::fail(
            key,
            format!("{dir} cannot be written: {e}"),
            format!(
                "run as root on a file system that is mounted rw, or set {key} to another directory"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use std::fs;

    fn denied() -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    #[test]
    fn a_pin_dir_outside_a_bpffs_is_told_with_the_mount() {
        let dir = Path::new("/sys/fs/bpf/kvmeter");
        assert_eq!(judge_bpffs(dir, Ok(BPF_FS_MAGIC), Ok(())).verdict, Verdict::Ok);
        for need in [
            judge_bpffs(dir, Ok(0x6265_6572), Ok(())),
            judge_bpffs(dir, Err(io::ErrorKind::NotFound.into()), denied()),
        ] {
            assert!(
                matches!(&need.verdict, Verdict::Fail(fix) if fix.starts_with("mount -t bpf bpf /sys/fs/bpf")),
                "{need:?}"
            );
        }
        let closed = judge_bpffs(dir, Ok(BPF_FS_MAGIC), denied());
        assert!(matches!(&closed.verdict, Verdict::Fail(fix) if fix.starts_with("run as root")));
    }

    #[test]
    fn a_real_directory_is_no_bpffs() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.probe.pin_dir = dir.path().join("pins/deeper");
        let bpffs = needs(&config).swap_remove(0);
        assert!(bpffs.found.ends_with("is not below a bpffs"), "{bpffs:?}");
    }

    #[test]
    fn without_debugfs_less_is_known() {
        assert_eq!(judge_debugfs(Ok(())).verdict, Verdict::Ok);
        let missing = judge_debugfs(Err(io::ErrorKind::NotFound.into()));
        assert!(
            matches!(&missing.verdict, Verdict::Warn(fix) if fix.starts_with("mount -t debugfs"))
        );
        assert_eq!(judge_debugfs(denied()).verdict, Verdict::Warn("run as root".into()));
    }

    #[test]
    fn a_directory_that_is_missing_is_judged_by_the_one_above() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&dir.path().join("a/b/c")), dir.path());
        assert!(writable(dir.path()).is_ok());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let need = judge_dir("state.dir", &file, writable(&nearest(&file.join("below"))));
        assert!(
            matches!(&need.verdict, Verdict::Fail(fix) if fix.contains("set state.dir to another")),
            "{need:?}"
        );
    }
}

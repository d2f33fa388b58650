//! A cgroup that limits block I/O, with this process in it.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// The cgroup, removed when dropped.
pub(crate) struct IoLimit {
    hierarchy: PathBuf,
    cgroup: PathBuf,
    is_unified: bool,
    device: String,
    _mount: Option<Mount>,
}

struct Mount(TempDir);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

impl IoLimit {
    /// A cgroup without a limit yet for this block device.
    pub(crate) fn on(device: &Path) -> Self {
        let mut mount = None;
        let (hierarchy, is_unified) = hierarchy().unwrap_or_else(|| {
            let dir = tempfile::tempdir().unwrap();
            let mut command = Command::new("mount");
            command.args(["-t", "cgroup2", "none"]).arg(dir.path());
            assert!(command.status().unwrap().success());
            let path = dir.path().to_owned();
            mount = Some(Mount(dir));
            (path, true)
        });
        let number = device.metadata().unwrap().rdev();
        let device = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
        if is_unified {
            fs::write(hierarchy.join("cgroup.subtree_control"), "+io").unwrap();
        }
        let cgroup = hierarchy.join(format!("kvmeter-test-{}", std::process::id()));
        fs::create_dir(&cgroup).unwrap();
        Self { hierarchy, cgroup, is_unified, device, _mount: mount }
    }

    /// Limits the reads in one second.
    pub(crate) fn reads_per_s(&self, number: u64) {
        let Self { device, .. } = self;
        if self.is_unified {
            fs::write(self.cgroup.join("io.max"), format!("{device} riops={number}")).unwrap();
        } else {
            let file = self.cgroup.join("blkio.throttle.read_iops_device");
            fs::write(file, format!("{device} {number}")).unwrap();
        }
    }

    /// Moves this process into it.
    pub(crate) fn enter(&self) {
        move_to(&self.cgroup);
    }
}

impl Drop for IoLimit {
    fn drop(&mut self) {
        move_to(&self.hierarchy);
        let removed = fs::remove_dir(&self.cgroup);
        assert!(
            removed.is_ok() || std::thread::panicking(),
            "the test's cgroup remains: {removed:?}"
        );
    }
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// The hierarchy that has the controller of block I/O, and whether it is the unified one.
fn hierarchy() -> Option<(PathBuf, bool)> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let path = PathBuf::from(*fields.get(1)?);
        let is_own = fields.get(2)? == &"cgroup" && fields.get(3)?.split(',').any(|o| o == "blkio");
        let controllers = fs::read_to_string(path.join("cgroup.controllers")).unwrap_or_default();
        let is_unified =
            fields.get(2)? == &"cgroup2" && controllers.split_whitespace().any(|c| c == "io");
        (is_own || is_unified).then_some((path, is_unified))
    })
}

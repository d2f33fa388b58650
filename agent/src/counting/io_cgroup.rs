//! The processes that share a VM's cgroup, as far as block I/O goes. A request that a limit of the cgroup delays is known by its
//! cgroup and device only, so it is the VM's only if no other process there may have made it.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Directories and processes of a cgroup that are looked at.
const MAX_CGROUPS: usize = 256;
const MAX_PROCESSES: usize = 1024;

/// The ids of the processes other than `pid` in the cgroup that limits block I/O of `pid`. `None` = it cannot be found out.
pub(super) fn others(pid: u32) -> Option<Vec<u32>> {
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (mount, path) = place(&cgroups, &mounts)?;
    let mut dir = mount.join(path);
    // In the unified hierarchy, the controller may be enabled further up only.
    while !has_io(&dir) {
        if dir == mount || !dir.pop() {
            return None;
        }
    }
    let mut processes = Vec::new();
    let mut dirs = vec![dir];
    let mut looked_at = 0;
    while let Some(dir) = dirs.pop() {
        looked_at += 1;
        // A threaded cgroup shows its processes further up only.
        let listed = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        processes.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        if looked_at > MAX_CGROUPS || processes.len() > MAX_PROCESSES {
            return None;
        }
        let entries = fs::read_dir(&dir).ok()?.flatten();
        let is_dir = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        dirs.extend(entries.filter(is_dir).map(|entry| entry.path()));
    }
    if !processes.contains(&pid) {
        // It has moved meanwhile, or this is another namespace.
        return None;
    }
    processes.retain(|other| *other != pid);
    Some(processes)
}

/// Whether the controller of block I/O works in this cgroup: of the unified hierarchy, or of its own.
fn has_io(dir: &Path) -> bool {
    ["io.stat", "blkio.reset_stats"].iter().any(|name| dir.join(name).exists())
}

/// Where the hierarchy of block I/O is mounted, and the path of the process's cgroup there, from `/proc/PID/cgroup` (cgroups(7))
/// and `/proc/self/mountinfo` (proc(5)).
fn place<'a>(cgroups: &'a str, mounts: &str) -> Option<(PathBuf, &'a str)> {
    let mut unified = None;
    let mut own = None;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        if controllers.split(',').any(|name| name == "blkio") {
            own = Some(path);
        } else if controllers.is_empty() {
            unified = Some(path);
        }
    }
    let path = own.or(unified)?;
    mounts.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut filesystem = filesystem.split(' ');
        let (kind, options) = (filesystem.next()?, filesystem.next_back()?);
        let fits = match own {
            Some(_) => kind == "cgroup" && options.split(',').any(|option| option == "blkio"),
            None => kind == "cgroup2",
        };
        let mut fields = mount.split(' ').skip(3);
        let (root, at) = (fields.next()?, fields.next()?);
        // A part of the hierarchy may be mounted, as in a container.
        let below = path.strip_prefix(root.trim_end_matches('/'))?;
        (fits
            && (below.is_empty() || below.starts_with('/'))
            && !below.split('/').any(|part| part == ".."))
        .then(|| (PathBuf::from(at), below.trim_start_matches('/')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
30 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/blkio rw,nosuid shared:6 - cgroup cgroup rw,blkio
33 30 0:29 / /sys/fs/cgroup/cpu rw,nosuid shared:7 - cgroup cgroup rw,cpu
";

    #[test]
    fn the_hierarchy_with_block_io_is_found() {
        let cgroups = "9:cpu:/a\n7:blkio:/machine/b c\n0::/d\n";
        let blkio = PathBuf::from("/sys/fs/cgroup/blkio");
        assert_eq!(place(cgroups, MOUNTS), Some((blkio, "machine/b c")));
        let unified = PathBuf::from("/sys/fs/cgroup/unified");
        assert_eq!(place("9:cpu:/a\n0::/d\n", MOUNTS), Some((unified.clone(), "d")));
        assert_eq!(place("0::/\n", MOUNTS), Some((unified, "")));
        assert_eq!(place("0::/../d\n", MOUNTS), None);
        let part = "31 30 0:27 /pod/x /cg rw - cgroup2 cgroup2 rw\n";
        assert_eq!(place("0::/pod/x/y\n", part), Some((PathBuf::from("/cg"), "y")));
        assert_eq!(place("0::/pod/xy\n", part), None);
        assert_eq!(place("9:cpu:/a\n", MOUNTS), None);
        assert_eq!(place("", MOUNTS), None);
    }
}

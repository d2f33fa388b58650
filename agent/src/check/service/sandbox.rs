//! Gives this process the rights of a service: a mount namespace as its unit describes it, the unit's user, and the unit's
//! capabilities.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgid, setgroups, setuid},
};
use rustix::{
    fs::{CWD, FileType, Mode, makedev, mknodat, symlink},
    process::umask,
    thread::{set_keep_capabilities, set_no_new_privs},
};

/// The character devices of a private `/dev` (systemd's src/core/namespace.c), with their numbers.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

/// What a service may do.
#[derive(Clone, Debug, Default)]
pub(super) struct Rights {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) ambient: CapsHashSet,
    /// `None`: as they are.
    pub(super) bounding: Option<CapsHashSet>,
    pub(super) no_new_privileges: bool,
    pub(super) places: Places,
}

/// What a service sees of the filesystems.
#[derive(Clone, Debug, Default)]
pub(super) struct Places {
    pub(super) has_private_devices: bool,
    /// Directories that are empty and the service's own.
    pub(super) temporary: Vec<PathBuf>,
    pub(super) inaccessible: Vec<PathBuf>,
    pub(super) read_only: Vec<PathBuf>,
    pub(super) read_write: Vec<PathBuf>,
}

/// Takes the rights. The process must have one thread, and should execute a program then: what it did as root, it keeps.
/// An error says what was tried.
pub(super) fn enter(rights: &Rights) -> Result<(), String> {
    let places = &rights.places;
    unshare(CloneFlags::CLONE_NEWNS).map_err(said("cannot make a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(said("cannot make the mounts private"))?;
    if places.has_private_devices {
        make_devices().map_err(said("cannot make a private /dev"))?;
    }
    for dir in places.temporary.iter().filter(|dir| dir.is_dir()) {
        cover(dir, "mode=1777")?;
    }
    for place in places.inaccessible.iter().filter(|place| place.exists()) {
        if place.is_dir() {
            cover(place, "mode=000")?;
        } else {
            bind(Path::new("/dev/null"), place)?;
        }
    }
    limit_writing(places)?;
    take_user(rights)
}

fn said<E: std::fmt::Display>(what: impl Into<String>) -> impl FnOnce(E) -> String {
    let what = what.into();
    move |error| format!("{what}: {error}")
}

/// Covers a directory by an empty filesystem.
fn cover(dir: &Path, options: &str) -> Result<(), String> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some(options))
        .map_err(said(format!("cannot cover {}", dir.display())))
}

fn bind(from: &Path, to: &Path) -> Result<(), String> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .map_err(said(format!("cannot mount {} on {}", from.display(), to.display())))
}

fn make_devices() -> std::io::Result<()> {
    mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755"))?;
    let before = umask(Mode::empty());
    for (name, major, minor) in DEVICES {
        let path = Path::new("/dev").join(name);
        mknodat(CWD, path, FileType::CharacterDevice, Mode::from(0o666), makedev(major, minor))?;
    }
    umask(before);
    for (name, target) in [
        ("fd", "self/fd"),
        ("stdin", "self/fd/0"),
        ("stdout", "self/fd/1"),
        ("stderr", "self/fd/2"),
    ] {
        symlink(format!("/proc/{target}"), Path::new("/dev").join(name))?;
    }
    Ok(())
}

/// Makes every mount read-only that the longest path that has it says is read-only.
fn limit_writing(places: &Places) -> Result<(), String> {
    let rules = || {
        let read_only = places.read_only.iter().map(|path| (path, true));
        read_only.chain(places.read_write.iter().map(|path| (path, false)))
    };
    for (path, _) in rules().filter(|(path, _)| path.exists()) {
        if !is_mount_point(path) {
            bind(path, path)?;
        }
    }
    let table = fs::read_to_string("/proc/self/mountinfo")
        .map_err(said("cannot read /proc/self/mountinfo"))?;
    for line in table.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, _, _, point, options, ..] = fields.as_slice() else { continue };
        let point = PathBuf::from(unescape(point));
        let rule = rules().filter(|(path, _)| point.starts_with(path));
        let is_read_only = rule.max_by_key(|(path, _)| path.as_os_str().len());
        if !is_read_only.is_some_and(|(_, is_read_only)| is_read_only) {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | kept(options);
        // A mount that another one covers, or that another user's filesystem refuses (FUSE), stays as it is.
        let _ = mount(None::<&str>, &point, None::<&str>, flags, None::<&str>);
    }
    Ok(())
}

fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return true };
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    matches!((device(path), device(parent)), (Ok(own), Ok(above)) if own != above)
}

/// The options of a mount that a new set of flags would clear.
fn kept(options: &str) -> MsFlags {
    let flags = options.split(',').filter_map(|option| match option {
        "nosuid" => Some(MsFlags::MS_NOSUID),
        "nodev" => Some(MsFlags::MS_NODEV),
        "noexec" => Some(MsFlags::MS_NOEXEC),
        "noatime" => Some(MsFlags::MS_NOATIME),
        "nodiratime" => Some(MsFlags::MS_NODIRATIME),
        "relatime" => Some(MsFlags::MS_RELATIME),
        _ => None,
    });
    flags.fold(MsFlags::empty(), |all, flag| all | flag)
}

/// The kernel writes blanks, tabs, newlines and backslashes of a path as three octal digits.
fn unescape(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(path.to_owned(), |path, (escaped, plain)| path.replace(escaped, plain))
}

fn take_user(rights: &Rights) -> Result<(), String> {
    let failed = || said("cannot change the capabilities");
    if let Some(bounding) = &rights.bounding {
        let held = caps::read(None, CapSet::Bounding).map_err(failed())?;
        for capability in held.difference(bounding) {
            caps::drop(None, CapSet::Bounding, *capability).map_err(failed())?;
        }
    }
    let groups: Vec<Gid> = rights.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).map_err(said("cannot set the groups"))?;
    setgid(Gid::from_raw(rights.gid)).map_err(said("cannot become the group"))?;
    if rights.uid != 0 {
        set_keep_capabilities(true).map_err(said("cannot keep capabilities"))?;
        setuid(Uid::from_raw(rights.uid)).map_err(said("cannot become the user"))?;
        // What root itself lacks, a service on this host lacks, too; the check of the capability says so.
        let permitted = caps::read(None, CapSet::Permitted).map_err(failed())?;
        let granted: CapsHashSet = permitted.intersection(&rights.ambient).copied().collect();
        for set in [CapSet::Inheritable, CapSet::Effective, CapSet::Permitted, CapSet::Ambient] {
            caps::set(None, set, &granted).map_err(failed())?;
        }
    }
    if rights.no_new_privileges {
        set_no_new_privs(true).map_err(said("cannot set no_new_privs"))?;
    }
    Ok(())
}

/// Capabilities by their names. Unknown ones are those of a later kernel.
pub(super) fn capabilities(names: impl IntoIterator<Item = String>) -> CapsHashSet {
    names.into_iter().filter_map(|name| name.parse::<Capability>().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_mount_stay() {
        assert_eq!(
            kept("rw,nosuid,nodev,relatime"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_RELATIME
        );
        assert_eq!(kept("ro"), MsFlags::empty());
        assert_eq!(unescape("/a\\040b\\134"), "/a b\\");
        assert!(is_mount_point(Path::new("/")) && is_mount_point(Path::new("/proc")));
        assert!(!is_mount_point(Path::new("/proc/1")));
    }
}

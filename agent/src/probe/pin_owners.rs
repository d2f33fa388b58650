//! Who can change the pins: no one but root and the agent's user may.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, MetadataExt as _},
    },
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, Uid, chownat, fchown, openat};

use super::{
    ProbeError,
    pins::{is_bpffs, layout_dir},
};

/// Refuses a pin directory that another user can change than root, the agent's own, and those of `trusted`: such a user could detach the programs,
/// or have the agent adopt others.
///
/// # Errors
///
/// [`ProbeError::NotOurs`], with the directory, the pin directory or one above it or the layout's below it.
pub(crate) fn check_owners(pin_dir: &Path, trusted: &[u32]) -> Result<(), ProbeError> {
    let trusted = [&[0, rustix::process::geteuid().as_raw()], trusted].concat();
    for dir in layout_dir(pin_dir).ancestors().filter(|dir| !dir.as_os_str().is_empty()) {
        let found = match fs::symlink_metadata(dir) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(ProbeError::pin(dir, source)),
        };
        let is_above = !dir.starts_with(pin_dir);
        if let Some(why) = objection(found.uid(), found.mode(), &trusted, is_above) {
            return Err(ProbeError::NotOurs { dir: dir.to_owned(), why });
        }
    }
    Ok(())
}

/// Why others can change what is in a directory. In a sticky one above the pins they cannot remove or rename what is not theirs.
fn objection(owner: u32, mode: u32, trusted: &[u32], is_above: bool) -> Option<String> {
    match FileType::from_raw_mode(mode) {
        FileType::Directory => {}
        // A link above is followed; what it leads to is not the agent's to judge.
        FileType::Symlink if is_above => return None,
        _ => return Some("is no directory".to_owned()),
    }
    if !trusted.contains(&owner) {
        let others = trusted.iter().filter(|user| **user != 0);
        let others = others.map(|user| format!(" or user {user}")).collect::<String>();
        return Some(format!("belongs to user {owner}, not to root{others}"));
    }
    let is_open = mode & 0o022 != 0 && !(is_above && mode & Mode::SVTX.bits() != 0);
    is_open.then(|| format!("can be written by others (mode {:04o})", mode & 0o7777))
}

/// Makes `dir`, the pin directory or the layout's below it, for the agent's user only. The users of `trusted` may own it, too.
///
/// # Errors
///
/// [`ProbeError::NotBpffs`], [`ProbeError::NotOurs`] if a directory is another user's, [`ProbeError::Pin`]
pub(super) fn make(dir: &Path, pin_dir: &Path, trusted: &[u32]) -> Result<(), ProbeError> {
    // The filesystem is checked before anything is created in it.
    let existing = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    if !is_bpffs(existing) {
        return Err(ProbeError::NotBpffs { dir: pin_dir.to_owned() });
    }
    check_owners(pin_dir, trusted)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| ProbeError::pin(dir, source))?;
    // What was made by another user meanwhile.
    check_owners(pin_dir, trusted)
}

/// Makes the pin directory, and gives it and all pins in it to a user and group: an agent that does not run as root cannot
/// make it.
///
/// # Errors
///
/// [`ProbeError::NotBpffs`], [`ProbeError::NotOurs`] if the directory is another user's, [`ProbeError::Pin`]
pub(super) fn give(pin_dir: &Path, user: u32, group: u32) -> Result<(), ProbeError> {
    make(pin_dir, pin_dir, &[user])?;
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let owner = (Uid::from_raw(user), Gid::from_raw(group));
    let given = openat(CWD, pin_dir, how, Mode::empty()).and_then(|dir| give_all(&dir, owner, 0));
    given.map_err(|error| ProbeError::pin(pin_dir, io::Error::from(error)))
}

/// Gives a directory and what is in it, by descriptors: the user may change it meanwhile, but gets nothing outside.
fn give_all(dir: &OwnedFd, owner: (Uid, Gid), depth: usize) -> rustix::io::Result<()> {
    let (user, group) = owner;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if [c".", c".."].contains(&name) {
            continue;
        }
        let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(dir, name, how, Mode::empty()) {
            Ok(below) if depth == 0 => give_all(&below, owner, depth + 1)?,
            Ok(_) => {}
            Err(_) => {
                chownat(dir, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?;
            }
        }
    }
    fchown(dir, Some(user), Some(group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_can_change_is_refused() {
        const DIR: u32 = 0o040_000;
        let refused =
            |owner, mode, own, is_above| objection(owner, mode, &[0, own], is_above).is_some();
        for own in [0, 990] {
            for owner in [0, own] {
                assert!(!refused(owner, DIR | 0o700, own, false));
                assert!(!refused(owner, DIR | 0o755, own, false));
                assert!(refused(owner, DIR | 0o770, own, false));
                assert!(refused(owner, DIR | 0o777, own, true));
                assert!(refused(owner, DIR | 0o1777, own, false), "its own entries could be added");
                assert!(!refused(owner, DIR | 0o1777, own, true), "a bpffs of mode 1777");
            }
            assert!(refused(1000, DIR | 0o700, own, false));
            assert!(refused(1000, DIR | 0o755, own, true));
            assert!(refused(1000, DIR | 0o1777, own, true), "its owner may remove anything there");
            assert!(refused(own, 0o100_600, own, false) && refused(own, 0o120_777, own, false));
        }
    }
}

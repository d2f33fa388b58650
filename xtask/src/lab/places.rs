//! Where programs are, and what was fetched.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Where a program is, also among those for root.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_sbin()).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Where programs are looked for, with the directories of those for root.
#[must_use]
pub fn path_with_sbin() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Where what was fetched or built for this user is kept; `None` = he has no home.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Some(cache?.join("kvmeter"))
}

//! Paths of programs and of the cache.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
};

/// Path of a program, including those in sbin.
#[must_use]
pub fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_sbin()).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// The search path, including the sbin directories.
#[must_use]
pub fn path_with_sbin() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Cache directory of this user; `None` = there is no home directory.
#[must_use]
pub fn cache() -> Option<PathBuf> {
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    Some(cache?.join("kvmeter"))
}

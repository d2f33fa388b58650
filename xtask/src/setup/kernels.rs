//! Kernels of Debian that guests of the tests boot. They are fetched, and not installed.

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, bail};
use xtask::lab::{DebianKernel, find};

use crate::command::{as_root, run, step};

/// Packages that depend on the newest kernel of their kind.
const KINDS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// The lists of packages that apt-get has read.
const LISTS: &str = "/var/lib/apt/lists";

/// The kinds to be fetched: the newest kernel of the kind is not in the cache. All kinds, if apt-get has read no lists yet.
pub(super) fn missing() -> anyhow::Result<Vec<&'static str>> {
    let Some(place) = DebianKernel::place().filter(|_| find("apt-get").is_some()) else {
        return Ok(Vec::new());
    };
    let mut missing = Vec::new();
    for kind in KINDS {
        let is_missing = match newest(kind)? {
            Some(release) => !place.join(release).exists(),
            None => !has_lists(),
        };
        if is_missing {
            missing.push(kind);
        }
    }
    Ok(missing)
}

/// The kinds without their newest kernel in the cache.
pub(super) fn absent() -> Vec<&'static str> {
    let place = DebianKernel::place();
    let is_there = |kind: &&str| {
        let release = newest(kind).ok().flatten();
        release.zip(place.as_ref()).is_some_and(|(release, place)| place.join(release).exists())
    };
    KINDS.into_iter().filter(|kind| !is_there(kind)).collect()
}

/// Fetches the newest kernel of each kind that is missing, and removes those that newer ones replace.
pub(super) fn fetch(missing: &[&str]) -> anyhow::Result<()> {
    let place = DebianKernel::place().context("HOME is not set")?;
    for kind in missing {
        // Lists may be missing, or old enough to name a package that the server has replaced.
        if fetch_newest(kind, &place).is_err() {
            let mut update = as_root("apt-get");
            step("Reading the lists of packages", update.args(["-q", "update"]))?;
            fetch_newest(kind, &place)?;
        }
    }
    let mut wanted = Vec::new();
    for kind in KINDS {
        wanted.extend(newest(kind)?);
    }
    // Known to be replaced only if the newest of each kind is known.
    let is_old =
        |kernel: &&DebianKernel| wanted.len() == KINDS.len() && !wanted.contains(&kernel.release);
    for kernel in DebianKernel::all().iter().filter(is_old) {
        fs::remove_dir_all(place.join(&kernel.release))?;
    }
    Ok(())
}

fn fetch_newest(kind: &str, place: &Path) -> anyhow::Result<()> {
    let Some(release) = newest(kind)? else { bail!("there is no package {kind}") };
    if place.join(&release).exists() {
        return Ok(());
    }
    fs::create_dir_all(place)?;
    let fetched = tempfile::tempdir_in(place)?;
    let package = format!("{PREFIX}{release}");
    let mut download = Command::new("apt-get");
    download.args(["-q", "download", &package]).current_dir(&fetched);
    step(&format!("Fetching {package}"), &mut download)?;
    let file = fs::read_dir(&fetched)?.next().context("apt-get fetched nothing")??;
    let unpacked = fetched.path().join("unpacked");
    run(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&unpacked))?;
    Ok(fs::rename(unpacked, place.join(&release))?)
}

const PREFIX: &str = "linux-image-";

/// The release of the newest kernel of a kind; `None`: the lists have no such kind.
fn newest(kind: &str) -> anyhow::Result<Option<String>> {
    let told = Command::new("apt-cache").args(["depends", kind]).output()?;
    let told = String::from_utf8(told.stdout)?;
    let mut depends = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.find_map(|name| name.strip_prefix(PREFIX)).map(str::to_owned))
}

fn has_lists() -> bool {
    let lists = fs::read_dir(LISTS).into_iter().flatten().flatten();
    lists.into_iter().any(|list| list.file_name().to_string_lossy().contains("_Packages"))
}

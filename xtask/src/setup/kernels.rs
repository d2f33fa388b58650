//! Kernels of Debian that guests of the tests boot.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;
use xtask::lab::{DebianKernel, find};

use crate::command::{run, step};

/// Kernels that guests of the tests boot, as packages that depend on the newest one of their kind.
const KERNELS: [&str; 2] = ["linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64"];

/// Fetches the kernels for guests, which are not installed. Without them some tests are skipped.
pub(super) fn kernels() -> anyhow::Result<()> {
    let Some(place) = DebianKernel::place().filter(|_| find("apt-get").is_some()) else {
        return Ok(());
    };
    let mut wanted = Vec::new();
    for kind in KERNELS {
        // Lists may be missing, or old enough to name what is there no more.
        let mut fetched = fetch(kind, &place);
        if !matches!(fetched, Ok(Some(_))) && rustix::process::geteuid().is_root() {
            let update = &mut Command::new("apt-get");
            fetched = step("Reading the lists of packages", update.args(["-q", "update"]))
                .and_then(|()| fetch(kind, &place));
        }
        // Nothing is built with it.
        match fetched {
            Ok(Some(release)) => wanted.push(release),
            Ok(None) => eprintln!("==> No package {kind}: what needs its kernel is not tested"),
            Err(error) => eprintln!("==> {error:#}: what needs {kind} is not tested"),
        }
    }
    // Those that newer ones have replaced, if that is known of all.
    let is_old =
        |kernel: &&DebianKernel| wanted.len() == KERNELS.len() && !wanted.contains(&kernel.release);
    for kernel in DebianKernel::all().iter().filter(is_old) {
        fs::remove_dir_all(place.join(&kernel.release))?;
    }
    Ok(())
}

/// Fetches the newest kernel of a kind, if it is not there. Its release; `None` = there is no such kind.
fn fetch(kind: &str, place: &Path) -> anyhow::Result<Option<String>> {
    let Some(package) = newest(kind)? else { return Ok(None) };
    let release = package.trim_start_matches("linux-image-").to_owned();
    if !place.join(&release).exists() {
        fs::create_dir_all(place)?;
        let fetched = tempfile::tempdir_in(place)?;
        let mut download = Command::new("apt-get");
        download.args(["-q", "download", &package]).current_dir(&fetched);
        step(&format!("Fetching {package}"), &mut download)?;
        let file = fs::read_dir(&fetched)?.next().context("apt-get fetched nothing")??;
        let unpacked = fetched.path().join("unpacked");
        run(Command::new("dpkg-deb").arg("-x").arg(file.path()).arg(&unpacked))?;
        fs::rename(unpacked, place.join(&release))?;
    }
    Ok(Some(release))
}

/// The package that one depends on which itself is empty.
fn newest(kind: &str) -> anyhow::Result<Option<String>> {
    let told = Command::new("apt-cache").args(["depends", kind]).output()?;
    let told = String::from_utf8(told.stdout)?;
    let mut depends = told.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok(depends.find(|name| name.starts_with("linux-image-")).map(str::to_owned))
}

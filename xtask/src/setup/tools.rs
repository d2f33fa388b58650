//! Tools that are installed prebuilt, by pip: to build them takes minutes.

use std::{
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::Context as _;
use xtask::lab::{cache, find};

use crate::command::{root, run};

/// Names, versions and hashes of the tools, in the format of pip's requirements. A copy lies beside what was installed by it.
const LIST: &str = "tools.txt";

/// The program of a tool: the one that was installed for kvmeter, or else one of this name on the search path.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let own = place().map(|place| place.join("bin").join(name));
    own.filter(|program| program.is_file()).or_else(|| find(name))
}

/// Whether they are not there as the list says, and this machine has what installs them.
pub(super) fn are_missing() -> bool {
    !are_there() && has_pip()
}

pub(super) fn are_there() -> bool {
    let installed = place().and_then(|place| fs::read(place.join(LIST)).ok());
    installed.is_some() && installed == fs::read(list()).ok()
}

pub(super) fn has_pip() -> bool {
    let mut pip = pip();
    pip.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    pip.status().is_ok_and(|status| status.success())
}

/// Installs them into the cache of this user, with nothing but what the list names.
pub(super) fn install() -> anyhow::Result<()> {
    let place = place().context("HOME is not set")?;
    let above = place.parent().context("the cache is no directory")?;
    fs::create_dir_all(above)?;
    let new = tempfile::tempdir_in(above)?;
    let mut pip = pip();
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    pip.args(["--only-binary", ":all:", "--require-hashes", "--target"]);
    run(pip.arg(new.path()).arg("--requirement").arg(list()))?;
    fs::copy(list(), new.path().join(LIST))?;
    match fs::remove_dir_all(&place) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    Ok(fs::rename(new.keep(), place)?)
}

fn pip() -> Command {
    let mut python = Command::new("python3");
    // Without a word about root: nothing is installed beside the packages of the system.
    python.args(["-m", "pip"]).env("PIP_ROOT_USER_ACTION", "ignore");
    python
}

fn place() -> Option<PathBuf> {
    Some(cache()?.join("tools"))
}

fn list() -> PathBuf {
    root().join("xtask").join(LIST)
}

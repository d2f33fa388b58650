//! Other programs, run with what they do on the screen.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or_else(|| Path::new(".")).to_owned()
}

/// The cargo that runs this, in the root of the checkout.
pub(crate) fn cargo<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root()).args(arguments);
    cargo
}

/// The same command, but only on CPUs that others leave idle.
pub(crate) fn on_idle_cpus(command: &Command) -> Command {
    behind(&["chrt", "--idle", "0"], command)
}

/// The same command, executed by the program that these words begin with.
pub(crate) fn behind<S: AsRef<OsStr>>(words: &[S], command: &Command) -> Command {
    let mut words = words.iter().map(AsRef::as_ref).chain([command.get_program()]);
    let mut whole = Command::new(words.next().unwrap_or_default());
    whole.args(words).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => whole.env(name, value),
            None => whole.env_remove(name),
        };
    }
    if let Some(dir) = command.get_current_dir() {
        whole.current_dir(dir);
    }
    whole
}

/// git in the root of the checkout.
pub(crate) fn git<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut git = Command::new("git");
    git.current_dir(root()).args(arguments);
    git
}

/// Runs a command to its end.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<()> {
    let status =
        command.status().with_context(|| format!("{} cannot be started", shown(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", shown(command));
    }
    Ok(())
}

/// Tells what is done, and does it.
pub(crate) fn step(what: &str, command: &mut Command) -> anyhow::Result<()> {
    eprintln!("==> {what}");
    run(command)
}

/// A command that root has to run: asks for it with `sudo` when this is not root.
pub(crate) fn as_root(program: impl AsRef<OsStr>) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.arg(program);
    sudo
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

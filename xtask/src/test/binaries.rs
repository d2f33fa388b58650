//! The programs that hold the tests.

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};
use serde_json::Value as Json;

use crate::command::cargo;

/// A program with tests, as cargo has built it.
#[derive(Clone, Debug)]
pub(crate) struct Binary {
    /// The package and the target, as in `kvmeter/pure`.
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Where cargo runs it.
    pub(crate) package_dir: PathBuf,
}

/// Builds the tests of these packages, and says where they are.
pub(crate) fn build(arguments: &[String]) -> anyhow::Result<Vec<Binary>> {
    let mut build = cargo(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    let mut building = build.args(arguments).stdout(Stdio::piped()).spawn()?;
    let messages = building.stdout.take().context("cargo has no output")?;
    let mut binaries = Vec::new();
    for line in BufReader::new(messages).lines() {
        binaries.extend(binary(&serde_json::from_str(&line?)?));
    }
    if !building.wait()?.success() {
        bail!("the tests do not build");
    }
    Ok(binaries)
}

fn binary(message: &Json) -> Option<Binary> {
    let file = message["executable"].as_str().filter(|_| message["profile"]["test"] == true)?;
    let package_dir = Path::new(message["manifest_path"].as_str()?).parent()?;
    let package = package_dir.file_name()?.to_string_lossy();
    let target = &message["target"];
    let name = target["name"].as_str()?;
    let kind = target["kind"].as_array()?.first()?.as_str()?;
    let name = if kind == "test" { name } else { kind };
    Some(Binary {
        name: format!("{package}/{name}"),
        file: file.into(),
        package_dir: package_dir.to_owned(),
    })
}

impl Binary {
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.file);
        command.current_dir(&self.package_dir).env("CARGO_MANIFEST_DIR", &self.package_dir);
        command
    }

    /// The modules that have tests, by their paths.
    pub(crate) fn modules(&self) -> anyhow::Result<Vec<String>> {
        let listed = self.command().args(["--list", "--format", "terse"]).output()?;
        if !listed.status.success() {
            bail!("{} does not list its tests: {}", self.name, listed.status);
        }
        let listed = String::from_utf8(listed.stdout)?;
        let tests: Vec<&str> =
            listed.lines().filter_map(|line| line.strip_suffix(": test")).collect();
        let in_modules = tests.iter().filter_map(|test| test.rsplit_once("::"));
        let mut modules: Vec<String> = in_modules.map(|(module, _)| module.to_owned()).collect();
        if !modules.is_empty() && modules.len() < tests.len() {
            // They would run in no lane.
            bail!("{} has tests in modules and tests at its root", self.name);
        }
        modules.dedup();
        Ok(modules)
    }
}

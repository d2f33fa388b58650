//! Which files there are, and how long they may be.

use std::{fs, path::Path};

use super::findings::Findings;
use crate::command::git;

/// The most lines of a file. A subject that needs more is two.
const LINES: usize = 600;

/// Longer files, and why.
const LONG: &[(&str, &str)] = &[];

/// All that the root may hold, beside the rooms what tools insist on.
const ROOT: [&str; 17] = [
    "agent",
    "benches",
    "common",
    "ebpf",
    "xtask",
    "Cargo.toml",
    "README.md",
    // Tools look for these here.
    ".cargo",
    ".ci",
    ".gitignore",
    "Cargo.lock",
    "LICENSE-APACHE",
    "LICENSE-GPL-2.0",
    "LICENSE-MIT",
    "clippy.toml",
    "rust-toolchain.toml",
    "rustfmt.toml",
];

/// Directories with what is built or made, for a checkout that git does not know.
const MADE: [&str; 4] = [".git", "target", "corpus", "artifacts"];

/// The files of the checkout that are tracked, or would be; all of them where there is no git.
pub(crate) fn of_checkout(root: &Path) -> anyhow::Result<Vec<String>> {
    let listed = git(["ls-files", "--cached", "--others", "--exclude-standard"]).output();
    if let Ok(listed) = listed
        && listed.status.success()
    {
        let files = String::from_utf8(listed.stdout)?;
        // Not those that are deleted, and still in the index.
        return Ok(files
            .lines()
            .filter(|file| root.join(file).is_file())
            .map(str::to_owned)
            .collect());
    }
    let mut files = Vec::new();
    let mut dirs = vec![String::new()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if dir.is_empty() { name.clone() } else { format!("{dir}/{name}") };
            if !entry.file_type()?.is_dir() {
                files.push(path);
            } else if !MADE.contains(&name.as_str()) {
                dirs.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

pub(crate) fn check(root: &Path, files: &[String], findings: &mut Findings) -> anyhow::Result<()> {
    for file in files {
        let first = file.split('/').next().unwrap_or(file);
        if !ROOT.contains(&first) {
            findings.add(file, "does not belong into the root");
        }
        if !file.ends_with(".rs") {
            continue;
        }
        let lines = fs::read_to_string(root.join(file))?.lines().count();
        let is_allowed = LONG.iter().any(|(long, _)| long == file);
        if lines > LINES && !is_allowed {
            findings.add(file, format!("{lines} lines; at most {LINES}"));
        } else if lines <= LINES && is_allowed {
            findings.add(file, "is not long: take it off the list of exceptions");
        }
    }
    Ok(())
}

/// Whether a file is `place`, or below it.
pub(crate) fn is_in(file: &str, place: &str) -> bool {
    file.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

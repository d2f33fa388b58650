//! `cargo xtask tidy`: what holds in the whole checkout and no compiler checks.

mod config_keys;
mod cores;
mod files;
mod findings;
mod import_cycles;
mod imports;
mod links;
mod profiles;
mod source;

use anyhow::bail;

use findings::Findings;

use crate::command::root;

/// Directories with the sources of a crate; that of the agent first.
const CRATES: [&str; 6] =
    ["agent/src", "common/src", "ebpf/src", "xtask/src", "xtask/src/bin/tiny-guest", "benches/src"];

pub(crate) fn run() -> anyhow::Result<()> {
    let root = root();
    let mut findings = Findings::default();
    let files = files::of_checkout(&root)?;
    files::check(&root, &files, &mut findings)?;
    let crates = CRATES.map(|src| source::Crate::read(&root, src));
    let crates = crates.into_iter().collect::<Result<Vec<_>, _>>()?;
    import_cycles::check(&crates, &mut findings);
    imports::check(&crates[0], &mut findings);
    cores::check(&crates[0], &mut findings);
    config_keys::check(&root, &mut findings)?;
    links::check(&root, &files, &mut findings)?;
    profiles::check(&root, &files, &mut findings)?;
    let findings = findings.all();
    for finding in findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    Ok(())
}

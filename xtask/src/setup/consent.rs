//! The question before something is installed.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::bail;

/// Says what is about to be done, and asks if there is a terminal to answer at.
pub(super) fn agree(what: &[String], yes: bool) -> anyhow::Result<()> {
    eprintln!("==> About to");
    for what in what {
        eprintln!("      {what}");
    }
    if yes || !io::stdin().is_terminal() {
        return Ok(());
    }
    eprint!("Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        bail!("nothing is installed");
    }
    Ok(())
}

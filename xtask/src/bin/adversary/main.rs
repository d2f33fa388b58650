//! A process of an ordinary user that tries to mislead or to overload the agent, for its tests. The command line is the
//! disguise; the variable `ATTACK` says what it does.

mod files;
mod processes;
mod ring;
mod vms;

use std::{env, thread, time::Duration};

use anyhow::bail;
use rustix::process::Signal;

/// Time from its start after which it ends, whatever it does.
const LIFE: Duration = Duration::from_secs(60);

/// Runs until it is killed, or its parent is gone.
fn main() -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let attack = env::var("ATTACK")?;
    match attack.as_str() {
        "sleep" => {}
        "copy" => return files::rewritten(),
        "lease" => return files::leased(),
        "fifo" => files::make_fifo()?,
        "files" => return files::many_open(),
        "pins" => return files::meddle(),
        "hang" => return files::hang(),
        "ring" => return ring::never_complete(),
        "forks" => return processes::forks(),
        "execs" => return processes::execs(),
        "crowd" => return processes::crowd(),
        "end" => return Ok(()),
        "vm" => return vms::one(),
        "dups" => return vms::dups(),
        "vms" => vms::flood()?,
        other => bail!("{other:?} is no attack"),
    }
    wait()
}

/// Does nothing for the rest of its life.
#[expect(clippy::unnecessary_wraps, reason = "the last call of each attack")]
fn wait() -> anyhow::Result<()> {
    thread::sleep(LIFE);
    Ok(())
}

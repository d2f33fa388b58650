//! Floods of processes.
#![expect(unsafe_code, reason = "the standard library has no fork without exec")]

use std::{
    env,
    os::unix::process::CommandExt as _,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use super::{LIFE, wait};

/// Makes a child. The child calls `run`, which must not allocate, and ends.
fn fork(run: impl FnOnce()) -> i32 {
    // SAFETY: this process has one thread, so the child may use all of its memory.
    match unsafe { libc::fork() } {
        0 => {
            run();
            // SAFETY: no destructor or exit handler runs.
            unsafe { libc::_exit(0) }
        }
        child => child,
    }
}

/// Forks children that end at once, one after the other.
pub(crate) fn forks() -> anyhow::Result<()> {
    let start = Instant::now();
    while start.elapsed() < LIFE {
        let child = fork(|| {});
        // SAFETY: no status is written.
        unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
    }
    Ok(())
}

/// Executes itself in children that end at once, with its own command line, one after the other.
pub(crate) fn execs() -> anyhow::Result<()> {
    let arguments: Vec<_> = env::args_os().collect();
    let start = Instant::now();
    while start.elapsed() < LIFE {
        let mut command = Command::new(env::current_exe()?);
        command.arg0(&arguments[0]).args(&arguments[1..]).env("ATTACK", "end").status()?;
    }
    Ok(())
}

/// Makes a number of children that stay.
pub(crate) fn crowd() -> anyhow::Result<()> {
    let count: u32 = env::var("ATTACK_COUNT")?.parse()?;
    for _ in 0..count {
        fork(|| {
            // SAFETY: the call takes integers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            thread::sleep(LIFE);
        });
        thread::sleep(Duration::from_micros(500));
    }
    wait()
}

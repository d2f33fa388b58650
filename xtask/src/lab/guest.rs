//! The tiny KVM guest.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{ChildStdout, Command, Stdio},
    sync::OnceLock,
    time::Instant,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use super::{Child, LabError, PATIENCE};

/// A VM of a few bytes of code that uses CPU on command.
#[derive(Debug)]
pub struct TinyGuest {
    /// Its process.
    pub child: Child,
    said: BufReader<ChildStdout>,
    tids: Vec<u32>,
}

impl TinyGuest {
    /// Builds it, if necessary, without starting one.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn build() -> Result<(), LabError> {
        program().map(drop)
    }

    /// Starts it with these options of `tiny-guest`, and waits until its vCPUs run.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(options: &[&str]) -> Result<Self, LabError> {
        Self::start_as("tiny-guest", options)
    }

    /// Starts it as [`start`](Self::start) does, with `name` as that of the program on its command line. With the name
    /// and the options of another VMM it is taken for one.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start_as(name: &str, options: &[&str]) -> Result<Self, LabError> {
        let mut command = Command::new(program()?);
        command.arg0(name).args(options).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Child::start(&mut command)?;
        let said = child.process().stdout.take().map(BufReader::new);
        let Some(said) = said else { return Err(failed(&child, "it has no output")) };
        let mut guest = Self { child, said, tids: Vec::new() };
        guest.listen()?;
        Ok(guest)
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Returns the process alone, for a guest that needs no further commands.
    #[must_use]
    pub fn into_child(self) -> Child {
        self.child
    }

    /// The threads of the vCPUs.
    #[must_use]
    pub fn tids(&self) -> &[u32] {
        &self.tids
    }

    /// Plugs in a vCPU.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`]
    pub fn add_vcpu(&mut self) -> Result<(), LabError> {
        self.tell("add")
    }

    /// Unplugs the last vCPU.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`]
    pub fn remove_vcpu(&mut self) -> Result<(), LabError> {
        self.tell("remove")
    }

    fn tell(&mut self, order: &str) -> Result<(), LabError> {
        let told = match self.child.process().stdin.as_mut() {
            Some(input) => writeln!(input, "{order}").is_ok(),
            None => false,
        };
        if !told {
            return Err(failed(&self.child, "it takes no orders any more"));
        }
        self.listen()
    }

    /// `ready pid=1 tids=2,3`
    fn listen(&mut self) -> Result<(), LabError> {
        self.wait_for_output()?;
        let mut line = String::new();
        let tids = match self.said.read_line(&mut line) {
            Ok(_) => line.trim_end().split_once("tids=").map(|(_, tids)| tids),
            Err(_) => None,
        };
        let Some(tids) = tids else {
            return Err(failed(&self.child, "it did not say which threads it has"));
        };
        self.tids = tids.split(',').filter_map(|tid| tid.parse().ok()).collect();
        Ok(())
    }

    /// Waits for a response or the end of the output. The guest writes a response in one piece, so reading the line does
    /// not block.
    fn wait_for_output(&self) -> Result<(), LabError> {
        let start = Instant::now();
        loop {
            let mut output = [PollFd::new(self.said.get_ref(), PollFlags::IN)];
            match poll(&mut output, Some(&rest(start))) {
                Ok(0) => {
                    let what = format!("{} says which threads it has", self.child.program());
                    return Err(LabError::TooLate { what, limit: PATIENCE });
                }
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(failed(&self.child, &error.to_string())),
            }
        }
    }
}

/// The rest of [`PATIENCE`] since `start`.
fn rest(start: Instant) -> Timespec {
    let rest = PATIENCE.saturating_sub(start.elapsed());
    Timespec { tv_sec: rest.as_secs().cast_signed(), tv_nsec: rest.subsec_nanos().into() }
}

fn failed(child: &Child, said: &str) -> LabError {
    LabError::Failed { program: child.program().to_owned(), said: said.to_owned() }
}

/// Builds the guest's program if necessary, once per process.
fn program() -> Result<PathBuf, LabError> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.clone());
    }
    let program = built("tiny-guest", &["-p", "xtask", "--bin", "tiny-guest"])?;
    Ok(PROGRAM.get_or_init(|| program).clone())
}

/// Path of a program of this workspace, of the same build as the running one.
pub(super) fn built(name: &str, package: &[&str]) -> Result<PathBuf, LabError> {
    let own = env::current_exe()
        .map_err(|source| LabError::File { path: "/proc/self/exe".into(), source })?;
    // TARGET/PROFILE/NAME, TARGET/PROFILE/deps/NAME-HASH or TARGET/PROFILE/examples/NAME
    let is_in = |dir: &str| own.parent().is_some_and(|parent| parent.ends_with(dir));
    let up = if is_in("deps") || is_in("examples") { 2 } else { 1 };
    let profile = own.ancestors().nth(up).unwrap_or(&own).to_owned();
    let program = profile.join(name);
    // Started by sudo, not by cargo: it was built before.
    let Some(cargo) = env::var_os("CARGO") else { return Ok(program) };
    let mut cargo = Command::new(cargo);
    cargo.args(["build", "--quiet"]).args(package).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.arg("--target-dir").arg(profile.parent().unwrap_or(&profile));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let output =
        cargo.output().map_err(|source| LabError::Start { program: "cargo".to_owned(), source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(LabError::Failed {
            program: format!("cargo build {}", package.join(" ")),
            said,
        });
    }
    Ok(program)
}

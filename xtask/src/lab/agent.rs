//! The agent, with private directories and pins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{self, Command, Output, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rustix::process::Signal;

use super::{Child, LabError, PATIENCE, guest::built, wait_until};

/// A `kvmeter` with its own configuration. Its pins are removed when this is dropped.
#[derive(Debug)]
pub struct Agent {
    dir: PathBuf,
    pin_dir: PathBuf,
    program: Option<PathBuf>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Agent {
    /// Writes a configuration below `dir` that uses the master at `address`, and nothing of the host's own
    /// agent. `more` is appended to it.
    ///
    /// # Errors
    ///
    /// [`LabError::File`]
    pub fn new(dir: &Path, address: &str, more: &str) -> Result<Self, LabError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let pin_dir = PathBuf::from(format!("/sys/fs/bpf/kvmeter-lab-{}-{number}", process::id()));
        let agent = Self {
            dir: dir.to_owned(),
            pin_dir,
            program: None,
            environment: Vec::new(),
            child: None,
        };
        let text = format!(
            "[agentx]\naddress = \"{address}\"\n\
             [state]\ndir = \"{dir}/state\"\nruntime_dir = \"{dir}/run\"\n\
             [probe]\npin_dir = \"{pins}\"\n{more}",
            dir = dir.display(),
            pins = agent.pin_dir.display(),
        );
        let path = agent.config();
        fs::write(&path, text).map_err(|source| LabError::File { path, source })?;
        Ok(agent)
    }

    /// Uses another build of the agent than the one beside the running program.
    pub fn use_program(&mut self, program: PathBuf) {
        self.program = Some(program);
    }

    /// Sets a variable of its environment.
    pub fn set(&mut self, variable: &str, value: &str) {
        self.environment.push((variable.to_owned(), value.to_owned()));
    }

    /// Path of its configuration file.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.dir.join("kvmeter.toml")
    }

    /// The directory of its pins.
    #[must_use]
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("kvmeter.log")).unwrap_or_default()
    }

    /// Starts the agent and waits until it serves.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(&mut self) -> Result<(), LabError> {
        let path = self.dir.join("kvmeter.log");
        let log = fs::File::create(&path).map_err(|source| LabError::File { path, source })?;
        let mut command = self.command("run")?;
        if self.environment.iter().all(|(variable, _)| variable != "KVMETER_LOG") {
            command.env("KVMETER_LOG", "debug");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(Child::start(&mut command)?);
        wait_until(PATIENCE, "the agent serves", || {
            let ended = self.child.as_mut().is_none_or(|child| child.ended().is_some());
            (ended || self.log().contains("AgentX session established")).then_some(())
        })?;
        if self.child.as_mut().is_none_or(|child| child.ended().is_some()) {
            let said = self.log();
            return Err(LabError::Failed { program: "kvmeter run".to_owned(), said });
        }
        Ok(())
    }

    /// Its process.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] when it was not started.
    pub fn child(&self) -> Result<&Child, LabError> {
        self.child.as_ref().ok_or_else(|| LabError::Failed {
            program: "kvmeter run".to_owned(),
            said: "it was not started".to_owned(),
        })
    }

    /// Ends it as a service manager does (SIGTERM).
    ///
    /// # Errors
    ///
    /// [`LabError::TooLate`]
    pub fn end(&mut self) -> Result<(), LabError> {
        if let Some(mut child) = self.child.take() {
            child.signal(Signal::TERM)?;
            child.wait(Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// Kills it (SIGKILL).
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Runs `kvmeter NAME` with this configuration and further arguments.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn ask(&self, name: &str, arguments: &[&str]) -> Result<Output, LabError> {
        self.command(name)?
            .args(arguments)
            .output()
            .map_err(|source| LabError::Start { program: "kvmeter".to_owned(), source })
    }

    fn command(&self, name: &str) -> Result<Command, LabError> {
        let mut command = match &self.program {
            Some(program) => Command::new(program),
            None => Command::new(program()?),
        };
        command.arg(name).envs(self.environment.iter().cloned());
        if name != "mib" {
            command.arg("--config").arg(self.config());
        }
        Ok(command)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.child = None;
        // Without BPF programs there is no pin directory. `detach` fails if the agent was not built.
        if self.pin_dir.exists() {
            let _ = self.ask("detach", &[]);
        }
    }
}

/// Path of the agent's program, which is built if necessary.
fn program() -> Result<PathBuf, LabError> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(program) = PROGRAM.get() {
        return Ok(program.clone());
    }
    let program = built("kvmeter", &["-p", "kvmeter", "--bin", "kvmeter"])?;
    Ok(PROGRAM.get_or_init(|| program).clone())
}

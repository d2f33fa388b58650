//! A process that is killed when its value is dropped.

use std::{
    fs,
    process::{self, Command, ExitStatus},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{LabError, wait_until};

/// A process that is killed and reaped when this is dropped.
#[derive(Debug)]
pub struct Child {
    program: String,
    process: process::Child,
}

impl Child {
    /// Starts a command.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`]
    pub fn start(command: &mut Command) -> Result<Self, LabError> {
        let program = command.get_program().to_string_lossy().into_owned();
        match command.spawn() {
            Ok(process) => Ok(Self { program, process }),
            Err(source) => Err(LabError::Start { program, source }),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// The name under which it was started.
    #[must_use]
    pub fn program(&self) -> &str {
        &self.program
    }

    /// The process, for its pipes.
    pub const fn process(&mut self) -> &mut process::Child {
        &mut self.process
    }

    /// Exit status; `None` = it runs.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// Stops every thread of it (SIGSTOP), and waits until all have stopped.
    ///
    /// # Errors
    ///
    /// [`LabError::TooLate`]
    pub fn stop(&self) -> Result<(), LabError> {
        self.signal(Signal::STOP)?;
        let what = format!("{} stops", self.program);
        wait_until(super::PATIENCE, &what, || self.is_stopped().then_some(()))
    }

    /// Resumes it (SIGCONT).
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] when it has ended.
    pub fn go_on(&self) -> Result<(), LabError> {
        self.signal(Signal::CONT)
    }

    /// Sends a signal.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] when it has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), LabError> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw);
        pid.map_or(Err(rustix::io::Errno::SRCH), |pid| kill_process(pid, signal)).map_err(|error| {
            LabError::Failed { program: self.program.clone(), said: error.to_string() }
        })
    }

    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// [`LabError::TooLate`]
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus, LabError> {
        let what = format!("{} ends", self.program);
        wait_until(limit, &what, || self.ended())
    }

    /// Kills it and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only if it has ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Whether all of its threads have been stopped by a signal.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", self.pid())) else { return false };
        tasks.flatten().all(|task| {
            // A thread that has ended meanwhile counts as stopped.
            fs::read_to_string(task.path().join("stat")).map_or(true, |stat| {
                let state =
                    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
                // Kernel threads of KVM sleep and are not stopped.
                matches!(state, Some('T' | 't')) || is_kernel_thread(&task.path())
            })
        })
    }
}

fn is_kernel_thread(task: &std::path::Path) -> bool {
    fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("kvm-"))
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

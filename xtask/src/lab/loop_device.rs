//! A loop device over a file.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use super::LabError;

/// A loop device, detached when dropped.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// Attaches a free loop device to a file.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn of(file: &Path) -> Result<Self, LabError> {
        Self::made(file, &[])
    }

    /// The same with direct I/O: as slow as the disk below.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn direct(file: &Path) -> Result<Self, LabError> {
        Self::made(file, &["--direct-io=on"])
    }

    fn made(file: &Path, options: &[&str]) -> Result<Self, LabError> {
        let program = || "losetup".to_owned();
        let made = Command::new("/sbin/losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(file)
            .output()
            .map_err(|source| LabError::Start { program: program(), source })?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(LabError::Failed { program: program(), said });
        }
        let path = PathBuf::from(String::from_utf8_lossy(&made.stdout).trim());
        let held = File::open(&path);
        // The kernel detaches it at the last close, even if this process is killed.
        let detached = Command::new("/sbin/losetup").arg("--detach").arg(&path).status();
        detached.map_err(|source| LabError::Start { program: program(), source })?;
        let held = held.map_err(|source| LabError::File { path: path.clone(), source })?;
        Ok(Self { path, _held: held })
    }

    /// Path of the device.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

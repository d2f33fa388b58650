//! A block device made of a file.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use super::LabError;

/// A loop device, gone with this.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    _held: File,
}

impl LoopDevice {
    /// Takes a free one for this file.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn of(file: &Path) -> Result<Self, LabError> {
        Self::made(file, &[])
    }

    /// The same, past the page cache: as slow as the disk below.
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
        // The kernel lets it go with the last who has it open, also where this process is killed.
        let detached = Command::new("/sbin/losetup").arg("--detach").arg(&path).status();
        detached.map_err(|source| LabError::Start { program: program(), source })?;
        let held = held.map_err(|source| LabError::File { path: path.clone(), source })?;
        Ok(Self { path, _held: held })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

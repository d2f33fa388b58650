//! The monitor of a QEMU without libvirt.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::Path,
};

use super::{LabError, PATIENCE, wait_until};

/// A connection to the socket of `-qmp unix:PATH,server=on,wait=off` (docs/interop/qmp-spec.rst in QEMU's sources).
#[derive(Debug)]
pub struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects once QEMU listens.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn connect(socket: &Path) -> Result<Self, LabError> {
        let stream = wait_until(PATIENCE, "QEMU listens", || UnixStream::connect(socket).ok())?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| failed(&error.to_string()))?;
        let mut qmp = Self(BufReader::new(stream));
        qmp.execute(r#"{"execute":"qmp_capabilities"}"#)?;
        Ok(qmp)
    }

    /// Executes a command. Returns the line with the response.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] with QEMU's error.
    pub fn execute(&mut self, command: &str) -> Result<String, LabError> {
        writeln!(self.0.get_mut(), "{command}").map_err(|error| failed(&error.to_string()))?;
        loop {
            let mut line = String::new();
            match self.0.read_line(&mut line) {
                Ok(0) => return Err(failed("it has closed its monitor")),
                Ok(_) if line.starts_with("{\"return\"") => return Ok(line),
                Ok(_) if line.starts_with("{\"error\"") => {
                    return Err(failed(&format!("{command}: {line}")));
                }
                // A greeting or an event.
                Ok(_) => {}
                Err(error) => return Err(failed(&error.to_string())),
            }
        }
    }

    /// Executes a line of the monitor for people, which is written as in JSON. Returns the line with the response.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`]
    pub fn monitor(&mut self, line: &str) -> Result<String, LabError> {
        self.execute(&format!(
            r#"{{"execute":"human-monitor-command","arguments":{{"command-line":"{line}"}}}}"#
        ))
    }

    /// Makes a request on a drive in QEMU's block layer, in qemu-io's syntax, such as `read 0 4k`.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`]
    pub fn request(&mut self, drive: &str, request: &str) -> Result<(), LabError> {
        let said = self.monitor(&format!("qemu-io {drive} \\\"{request}\\\""))?;
        if said.contains("failed") || said.contains("rror") {
            return Err(failed(&format!("{request}: {said}")));
        }
        Ok(())
    }
}

fn failed(said: &str) -> LabError {
    LabError::Failed { program: "QEMU".to_owned(), said: said.to_owned() }
}

//! A private SNMP master, and net-snmp's tools.

use std::{
    fs, io,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Child, LabError, PATIENCE, path_with_sbin, wait_until};

const SYS_UP_TIME: &str = "1.3.6.1.2.1.1.3.0";

/// A running snmpd on a port of loopback, with AgentX on a socket of its own.
#[derive(Debug)]
pub struct Snmpd {
    dir: PathBuf,
    port: u16,
    child: Option<Child>,
}

impl Snmpd {
    /// Starts it with all its files below `dir` and waits until it responds. `more` is appended to its
    /// configuration.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(dir: &Path, more: &str) -> Result<Self, LabError> {
        let path = dir.join("snmpd.conf");
        let port = free_port().map_err(|source| LabError::File { path: path.clone(), source })?;
        let text = format!(
            "agentaddress udp:127.0.0.1:{port}\n\
             rocommunity public 127.0.0.1\n\
             rwcommunity private 127.0.0.1\n\
             master agentx\n\
             agentXSocket unix:{dir}/master\n\
             agentXPerms 0600 0700\n{more}",
            dir = dir.display()
        );
        fs::write(&path, text).map_err(|source| LabError::File { path, source })?;
        let mut snmpd = Self { dir: dir.to_owned(), port, child: None };
        snmpd.begin()?;
        Ok(snmpd)
    }

    /// Starts it after [`end`](Self::end), as it was.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn begin(&mut self) -> Result<(), LabError> {
        let mut command = Command::new("snmpd");
        command.args(["-f", "-Lf"]).arg(self.dir.join("snmpd.log"));
        command.args(["-C", "-I", "-smux", "-c"]).arg(self.dir.join("snmpd.conf"));
        command
            .env("PATH", path_with_sbin())
            .env("MIBS", "")
            .env("SNMP_PERSISTENT_DIR", self.dir.join("persistent"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        self.child = Some(Child::start(&mut command)?);
        wait_until(PATIENCE, "snmpd answers", || {
            snmp("snmpget", self.port, &["-t1"], &[SYS_UP_TIME]).ok()
        })?;
        Ok(())
    }

    /// Kills it.
    pub fn end(&mut self) {
        self.child = None;
    }

    /// Its process, while it runs.
    #[must_use]
    pub const fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// Its UDP port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Address of its AgentX socket, in the syntax of kvmeter's configuration.
    #[must_use]
    pub fn agentx_address(&self) -> String {
        format!("unix:{}/master", self.dir.display())
    }

    /// Runs one of net-snmp's tools against it.
    ///
    /// # Errors
    ///
    /// As [`snmp`].
    pub fn ask(&self, tool: &str, options: &[&str], names: &[&str]) -> Result<String, LabError> {
        snmp(tool, self.port, options, names)
    }
}

/// Runs one of net-snmp's tools against a port of loopback, with the community `public`. Returns its output.
///
/// # Errors
///
/// [`LabError::Failed`] with its error message.
pub fn snmp(tool: &str, port: u16, options: &[&str], names: &[&str]) -> Result<String, LabError> {
    let output = Command::new(tool)
        .args(["-v2c", "-cpublic", "-r0", "-t3"])
        .args(options)
        .arg(format!("127.0.0.1:{port}"))
        .args(names)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::Start { program: tool.to_owned(), source })?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said).trim().to_owned();
        return Err(LabError::Failed { program: format!("{tool} {}", names.join(" ")), said });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A port that was free a moment ago.
fn free_port() -> io::Result<u16> {
    Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port())
}

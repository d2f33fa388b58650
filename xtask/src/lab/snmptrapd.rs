//! A private receiver of notifications.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Child, LabError, PATIENCE, wait_until};

// SNMPv3 in these tests: user, keys, and the engine that sends.
const V3_USER: &str = "vmwatch";
const V3_KEYS: &str = "SHA \"authentication\" AES \"encryption-key\"";
const V3_ENGINE: &str = "0x8000000001020304";

/// A running snmptrapd on a port of loopback. It takes SNMPv2c and SNMPv3, traps and informs.
#[derive(Debug)]
pub struct Snmptrapd {
    dir: PathBuf,
    port: u16,
    _child: Child,
}

impl Snmptrapd {
    /// Starts it with all its files below `dir`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join("snmptrapd.conf");
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::File { path, source }
        };
        let socket = UdpSocket::bind("127.0.0.1:0").map_err(file(&path))?;
        let port = socket.local_addr().map_err(file(&path))?.port();
        drop(socket);
        let text = format!(
            "createUser -e {V3_ENGINE} {V3_USER} {V3_KEYS}\n\
             createUser {V3_USER} {V3_KEYS}\n\
             authUser log {V3_USER} priv\n\
             authCommunity log public\n\
             format2 %s %v\\n\n"
        );
        fs::write(&path, text).map_err(file(&path))?;
        let mut command = Command::new("snmptrapd");
        command.args(["-f", "-n", "-On", "-C", "-Lf"]).arg(dir.join("snmptrapd.log"));
        command.arg("-c").arg(&path).arg(format!("udp:127.0.0.1:{port}"));
        command
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("MIBS", "")
            .env("SNMP_PERSISTENT_DIR", dir.join("persistent-traps"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = Child::start(&mut command)?;
        let snmptrapd = Self { dir: dir.to_owned(), port, _child: child };
        wait_until(PATIENCE, "snmptrapd listens", || {
            snmptrapd.log().contains("NET-SNMP version").then_some(())
        })?;
        Ok(snmptrapd)
    }

    /// Lines for snmpd.conf that send every notification here: once as an SNMPv2c trap, once as an SNMPv2c inform
    /// and once as an SNMPv3 trap, as asked for.
    #[must_use]
    pub fn sinks(&self, trap: bool, inform: bool, v3: bool) -> String {
        let to = format!("127.0.0.1:{}", self.port);
        let mut lines = String::new();
        if trap {
            lines.push_str(&format!("trap2sink {to} public\n"));
        }
        if inform {
            lines.push_str(&format!("informsink {to} public\n"));
        }
        if v3 {
            lines.push_str(&format!(
                "trapsess -v 3 -e {V3_ENGINE} -u {V3_USER} -l authPriv -a SHA -A authentication -x AES \
                 -X encryption-key {to}\n"
            ));
        }
        lines
    }

    /// The notifications of VM-MIB that it has received, one line each, in order, as `-On` shows them.
    #[must_use]
    pub fn received(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| line.contains("= OID: .1.3.6.1.2.1.236.0."))
            .map(str::to_owned)
            .collect()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("snmptrapd.log")).unwrap_or_default()
    }
}

//! A private receiver of notifications.

use std::{
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
};

use super::{Child, LabError, PATIENCE, path_with_sbin, wait_until};

// SNMPv3 in these tests: user, keys, and engine id of the sender.
const V3_USER: &str = "vmwatch";
const V3_KEYS: &str = "SHA \"authentication\" AES \"encryption-key\"";
const V3_ENGINE: &str = "0x8000000001020304";

/// A way to send a notification.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(missing_docs, reason = "the names are SNMP's")]
pub enum Way {
    Trap,
    Inform,
    TrapV3,
    InformV3,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Trap, Self::Inform, Self::TrapV3, Self::InformV3];

    /// Start of snmptrapd's `%P`.
    const fn sign(self) -> &'static str {
        match self {
            Self::Trap => "TRAP2, SNMP v2c",
            Self::Inform => "INFORM, SNMP v2c",
            Self::TrapV3 => "TRAP2, SNMP v3",
            Self::InformV3 => "INFORM, SNMP v3",
        }
    }
}

/// A running snmptrapd on a port of loopback. It accepts SNMPv2c and SNMPv3, traps and informs.
#[derive(Debug)]
pub struct Snmptrapd {
    dir: PathBuf,
    port: u16,
    child: Child,
}

impl Snmptrapd {
    /// Starts it with all its files below `dir`.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(dir: &Path) -> Result<Self, LabError> {
        let path = dir.join("snmptrapd.log");
        let log = fs::File::create(&path).map_err(|source| LabError::File { path, source })?;
        let snmptrapd = Self::start_into(dir, log.into())?;
        wait_until(PATIENCE, "snmptrapd listens", || {
            snmptrapd.log().contains("NET-SNMP version").then_some(())
        })?;
        Ok(snmptrapd)
    }

    /// The same without waiting, and with its log in a pipe, line by line.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start_piped(dir: &Path) -> Result<(Self, ChildStderr), LabError> {
        let mut snmptrapd = Self::start_into(dir, Stdio::piped())?;
        let pipe = snmptrapd.child.process().stderr.take().ok_or_else(|| LabError::Failed {
            program: "snmptrapd".to_owned(),
            said: "it has no pipe".to_owned(),
        })?;
        Ok((snmptrapd, pipe))
    }

    fn start_into(dir: &Path, log: Stdio) -> Result<Self, LabError> {
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
             format2 %P %v\\n\n"
        );
        fs::write(&path, text).map_err(file(&path))?;
        let mut command = Command::new("snmptrapd");
        // Only its log on standard error is unbuffered.
        command.args(["-f", "-n", "-On", "-C", "-Le"]);
        command.arg("-c").arg(&path).arg(format!("udp:127.0.0.1:{port}"));
        command
            .env("PATH", path_with_sbin())
            .env("MIBS", "")
            .env("SNMP_PERSISTENT_DIR", dir.join("persistent-traps"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        Ok(Self { dir: dir.to_owned(), port, child: Child::start(&mut command)? })
    }

    /// Its UDP port on 127.0.0.1.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Lines for snmpd.conf that send every notification here in each of these ways.
    #[must_use]
    pub fn sinks(&self, ways: &[Way]) -> String {
        let to = format!("127.0.0.1:{}", self.port);
        let v3 = format!(
            "-u {V3_USER} -l authPriv -a SHA -A authentication -x AES -X encryption-key {to}"
        );
        let line = |way: &Way| match way {
            Way::Trap => format!("trap2sink {to} public\n"),
            Way::Inform => format!("informsink {to} public\n"),
            Way::TrapV3 => format!("trapsess -v 3 -e {V3_ENGINE} {v3}\n"),
            Way::InformV3 => format!("trapsess -Ci -v 3 {v3}\n"),
        };
        ways.iter().map(line).collect()
    }

    /// The notifications of VM-MIB received on this way, one line each, in order, as `-On` prints them.
    #[must_use]
    pub fn received(&self, way: Way) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let log = self.log();
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        for line in whole.lines() {
            match all.last_mut() {
                // A long octet string continues on the next lines.
                Some(last) if !Way::ALL.iter().any(|way| line.starts_with(way.sign())) => {
                    last.push_str(line);
                }
                _ => all.push(line.to_owned()),
            }
        }
        all.retain(|line| line.starts_with(way.sign()) && Self::is_of_vm_mib(line));
        all
    }

    /// Whether a line of its log is a notification of VM-MIB.
    #[must_use]
    pub fn is_of_vm_mib(line: &str) -> bool {
        line.contains("= OID: .1.3.6.1.2.1.236.0.")
    }

    /// Its whole log.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("snmptrapd.log")).unwrap_or_default()
    }
}

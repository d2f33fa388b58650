//! The configuration file: its keys, their defaults and bounds.
//!
//! The bounds of a key are part of its type; `etc/kvmeter.toml` has the same in words. An unknown key is an error, so that a
//! typing error does not become a default.

mod diagnostic;
mod values;

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use diagnostic::Diagnostic;
use values::{Directory, LibvirtUris, Milliseconds, Records, Seconds, SecondsOrNever};

use crate::{
    agentx::{self, Address},
    snmp::Oid,
};

/// The default file. It may be missing; then every key has its default.
pub const DEFAULT_PATH: &str = "/etc/kvmeter/kvmeter.toml";

/// Largest configuration file in bytes.
const MAX_LEN: u64 = 1 << 20;

/// The configuration.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The session with the SNMP master.
    pub agentx: Agentx,
    /// The sources of VMs, and the description of the hypervisor.
    pub inventory: Inventory,
    /// What is served of VM-MIB.
    pub mib: Mib,
    /// Directories of the agent's files.
    pub state: State,
    /// The BPF programs.
    pub probe: Probe,
    /// Sizes of the tables of records.
    pub limits: Limits,
    /// Notifications.
    pub notifications: Notifications,
}

/// `[agentx]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agentx {
    /// Address of the master.
    #[serde(with = "values::text")]
    pub address: Address,
    /// `o.timeout` of the Open PDU (RFC 2741 section 6.2.1), and the timeout for responses of the master: 1 to 255 s.
    #[serde(rename = "timeout_s", with = "Seconds::<1, 255>")]
    pub timeout: Duration,
    /// Largest delay between two attempts to connect to the master: 1 to 3,600 s.
    #[serde(rename = "reconnect_max_s", with = "Seconds::<1, 3600>")]
    pub reconnect_max: Duration,
    /// Idle time after which the agent sends a Ping PDU (RFC 2741 section 6.2.11): 1 to 3,600 s.
    #[serde(rename = "ping_s", with = "Seconds::<1, 3600>")]
    pub ping: Duration,
}

impl Default for Agentx {
    fn default() -> Self {
        Self {
            address: Address::Unix(PathBuf::from("/var/agentx/master")),
            timeout: agentx::DEFAULT_TIMEOUT,
            reconnect_max: agentx::DEFAULT_RECONNECT_MAX,
            ping: agentx::DEFAULT_PING_INTERVAL,
        }
    }
}

/// `[inventory]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inventory {
    /// URIs of libvirt daemons, at most 16; none, written `""`, turns this source off. Of two domains with one
    /// UUID, of two connections, the one that was known first has it, also after a restart.
    #[serde(with = "LibvirtUris")]
    pub libvirt: Vec<String>,
    /// Whether VMs that libvirt does not manage are served, too.
    pub procfs: bool,
    /// Poll interval for QEMU's own I/O counters of disks that the kernel cannot count: 1 to 3,600 s; `None`, written 0:
    /// never.
    #[serde(rename = "block_statistics_s", with = "SecondsOrNever::<3600>")]
    pub block_statistics: Option<Duration>,
    /// vmHvObjectID.
    #[serde(with = "values::text")]
    pub hv_object_id: Oid,
}

impl Default for Inventory {
    fn default() -> Self {
        Self {
            libvirt: vec!["qemu:///system".to_owned()],
            procfs: true,
            block_statistics: Some(Duration::from_secs(10)),
            hv_object_id: Oid::of(&[0, 0]),
        }
    }
}

/// `[mib]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mib {
    /// Whether vmCpuAffinityTable has rows: one for each vCPU and each CPU of the host.
    pub affinity: bool,
}

impl Default for Mib {
    fn default() -> Self {
        Self { affinity: true }
    }
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// State that must survive a restart: the index assignments.
    #[serde(with = "Directory::<4000>")]
    pub dir: PathBuf,
    /// Files that exist while the agent runs: the status socket and the lock. At most 90 bytes, because the path of a unix
    /// socket is limited to 107 (unix(7)).
    #[serde(with = "Directory::<90>")]
    pub runtime_dir: PathBuf,
}

impl Default for State {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/kvmeter"), runtime_dir: PathBuf::from("/run/kvmeter") }
    }
}

/// `[probe]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Probe {
    /// Directory of the pinned maps and links, below a mounted bpffs.
    #[serde(with = "Directory::<4000>")]
    pub pin_dir: PathBuf,
    /// Whether the method `syscall` may be used for disks that no other method can count.
    pub system_calls: bool,
}

impl Default for Probe {
    fn default() -> Self {
        Self { pin_dir: PathBuf::from("/sys/fs/bpf/kvmeter"), system_calls: true }
    }
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// VMs that can be counted at once: 16 to 32,767.
    #[serde(with = "Records::<16, 32_767>")]
    pub vms: u32,
    /// Threads of VMs that can be counted at once: 128 to 65,528. VMs get them in blocks of eight.
    #[serde(with = "Records::<128, 65_528>")]
    pub threads: u32,
    /// Records of images of disks: 256 to 65,536, rounded up to a power of two.
    #[serde(with = "Records::<256, 65_536>")]
    pub images: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self { vms: 4095, threads: 65_528, images: 4096 }
    }
}

/// `[notifications]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notifications {
    /// Initial value of vmPerVMNotificationsEnabled.
    pub per_vm: bool,
    /// Initial value of vmBulkNotificationsEnabled.
    pub bulk: bool,
    /// Time for which changes are collected into one bulk notification: 10 to 60,000 ms.
    #[serde(rename = "bulk_window_ms", with = "Milliseconds::<10, 60_000>")]
    pub bulk_window: Duration,
}

impl Default for Notifications {
    fn default() -> Self {
        Self { per_vm: false, bulk: false, bulk_window: Duration::from_millis(500) }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("Cannot read the configuration file {path}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is invalid.
    #[error("{path}:{diagnostic}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The first problem and its line.
        diagnostic: Diagnostic,
    },
}

impl Config {
    /// Reads the file at `path`; without a path, [`DEFAULT_PATH`], which may be missing.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] with the file, and line and key where the file is invalid.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let from = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        match read(from) {
            Ok(text) => Self::parse(&text)
                .map_err(|diagnostic| ConfigError::Invalid { path: from.to_owned(), diagnostic }),
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_none() => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path: from.to_owned(), source }),
        }
    }

    /// Parses the text of a configuration file.
    ///
    /// # Errors
    ///
    /// The first problem, as a [`Diagnostic`].
    pub fn parse(text: &str) -> Result<Self, Diagnostic> {
        diagnostic::unknown_key(text)?;
        let config: Self =
            toml::from_str(text).map_err(|e| Diagnostic::of_value(text, e.message(), e.span()))?;
        if config.inventory.libvirt.is_empty() && !config.inventory.procfs {
            return Err(Diagnostic::of_key(
                text,
                "inventory.procfs",
                "no VM would ever be found: libvirt is \"\" and procfs is false; turn one of them on",
            ));
        }
        let arcs = config.inventory.hv_object_id.parts();
        if !matches!(arcs, [0 | 1, 0..=39, ..] | [2, ..=4_294_967_215, ..]) {
            return Err(Diagnostic::of_key(
                text,
                "inventory.hv_object_id",
                "no SNMP message can have it: an object identifier has two numbers at least, of which the first is 0, 1 or 2, and \
                 the second after 0 or 1 is at most 39",
            ));
        }
        Ok(config)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|len| len > MAX_LEN) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the file has more than 1 MiB"));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.iter().filter(|byte| **byte == b'\n').count() + 1;
        io::Error::new(io::ErrorKind::InvalidData, format!("line {line} is no UTF-8"))
    })
}

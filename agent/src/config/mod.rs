//! The configuration file: what an operator may set, and what each key may be.
//!
//! Every key has a default and its bounds here, in its type; `etc/kvmeter.toml` says the same in words.
//! A key that is not known is an error, never ignored: a typing error must not become a default.

mod diagnostic;
mod values;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use diagnostic::Diagnostic;
use values::{Directory, LibvirtUri, Milliseconds, Seconds, SecondsOrNever};

use crate::agentx::Address;
use crate::snmp::Oid;

/// The file that is read when none is named. That it is missing means: all defaults.
pub const DEFAULT_PATH: &str = "/etc/kvmeter/kvmeter.toml";

/// The largest file that is read, in octets.
const MAX_LEN: u64 = 1 << 20;

/// Everything that can be set.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The way to the SNMP master.
    pub agentx: Agentx,
    /// Where the VMs are found and how the hypervisor is described.
    pub inventory: Inventory,
    /// Files that the agent keeps.
    pub state: State,
    /// The BPF programs.
    pub probe: Probe,
    /// What is sent without being asked for.
    pub notifications: Notifications,
}

/// `[agentx]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Agentx {
    /// Where the master listens.
    #[serde(with = "values::text")]
    pub address: Address,
    /// o.timeout of the Open PDU (RFC 2741 section 6.2.1), and how long an answer of the master may
    /// take: 1 to 255 s.
    #[serde(rename = "timeout_s", with = "Seconds::<1, 255>")]
    pub timeout: Duration,
    /// The longest pause between two attempts to reach a master that is gone: 1 to 3,600 s.
    #[serde(rename = "reconnect_max_s", with = "Seconds::<1, 3600>")]
    pub reconnect_max: Duration,
    /// Time without traffic after which the agent sends a Ping PDU (RFC 2741 section 6.2.11): 1 to
    /// 3,600 s.
    #[serde(rename = "ping_s", with = "Seconds::<1, 3600>")]
    pub ping: Duration,
}

impl Default for Agentx {
    fn default() -> Self {
        Self {
            address: Address::Unix(PathBuf::from("/var/agentx/master")),
            timeout: Duration::from_secs(5),
            reconnect_max: Duration::from_secs(2),
            ping: Duration::from_mins(1),
        }
    }
}

/// `[inventory]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Inventory {
    /// URI of the libvirt daemon; `None`, written `""`, turns this source off.
    #[serde(with = "LibvirtUri")]
    pub libvirt: Option<String>,
    /// Whether KVM processes that libvirt does not own are VMs too.
    pub procfs: bool,
    /// How often libvirt is asked for what QEMU counts of its disks' I/O: 1 to 3,600 s; `None`, written 0, means
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
            libvirt: Some("qemu:///system".to_owned()),
            procfs: true,
            block_statistics: Some(Duration::from_secs(10)),
            hv_object_id: Oid::of(&[0, 0]),
        }
    }
}

/// `[state]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct State {
    /// What must outlive a restart: the indexes of the VMs.
    #[serde(with = "Directory::<4000>")]
    pub dir: PathBuf,
    /// What lives as long as the agent: the status socket. At most 90 octets, for the name of a unix
    /// socket must fit in 107 (`unix(7)`).
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
    /// Where maps and links are pinned; below a mounted bpffs.
    #[serde(with = "Directory::<4000>")]
    pub pin_dir: PathBuf,
    /// Whether system calls may be hooked, where a disk cannot be counted in another way.
    pub system_calls: bool,
}

impl Default for Probe {
    fn default() -> Self {
        Self { pin_dir: PathBuf::from("/sys/fs/bpf/kvmeter"), system_calls: true }
    }
}

/// `[notifications]`
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notifications {
    /// First value of vmPerVMNotificationsEnabled.
    pub per_vm: bool,
    /// First value of vmBulkNotificationsEnabled.
    pub bulk: bool,
    /// How long changes are gathered into one bulk notification: 10 to 60,000 ms.
    #[serde(rename = "bulk_window_ms", with = "Milliseconds::<10, 60_000>")]
    pub bulk_window: Duration,
}

impl Default for Notifications {
    fn default() -> Self {
        Self { per_vm: false, bulk: false, bulk_window: Duration::from_millis(500) }
    }
}

/// Why there is no configuration.
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
    /// The file says something that it may not say.
    #[error("{path}:{diagnostic}", path = path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What, and in which line.
        diagnostic: Diagnostic,
    },
}

impl Config {
    /// Reads the file at `path`, or without one [`DEFAULT_PATH`], which may be missing.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], naming the file, and the line and key if it is one of them.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let from = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        match read(from) {
            Ok(text) => Self::parse(&text)
                .map_err(|diagnostic| ConfigError::Invalid { path: from.to_owned(), diagnostic }),
            Err(e) if e.kind() == io::ErrorKind::NotFound && path.is_none() => Ok(Self::default()),
            Err(source) => Err(ConfigError::Unreadable { path: from.to_owned(), source }),
        }
    }

    /// The configuration that `text` describes.
    ///
    /// # Errors
    ///
    /// The first [`Diagnostic`] in it.
    pub fn parse(text: &str) -> Result<Self, Diagnostic> {
        diagnostic::unknown_key(text)?;
        let config: Self =
            toml::from_str(text).map_err(|e| Diagnostic::of_value(text, e.message(), e.span()))?;
        if config.inventory.libvirt.is_none() && !config.inventory.procfs {
            return Err(Diagnostic::of_key(
                text,
                "inventory.procfs",
                "no VM would ever be found: libvirt is \"\" and procfs is false; turn one of them on",
            ));
        }
        Ok(config)
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(MAX_LEN + 1).read_to_string(&mut text)?;
    if u64::try_from(text.len()).is_ok_and(|len| len > MAX_LEN) {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it has more than 1 MiB"));
    }
    Ok(text)
}

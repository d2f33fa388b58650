//! Real guests, daemons, an SNMP master and the agent itself, each private to its test and ended when its value is
//! dropped.

mod adversary;
mod agent;
mod child;
mod client;
mod debian_kernel;
mod error;
mod guest;
mod hung_file;
mod libvirtd;
mod loop_device;
mod need;
mod places;
mod qemu;
mod qmp;
mod snmpd;
mod snmptrapd;

use std::{
    thread,
    time::{Duration, Instant},
};

pub use adversary::{Adversary, User};
pub use agent::Agent;
pub use child::Child;
pub use client::{Answer, Client};
pub use debian_kernel::{DebianKernel, Initramfs};
pub use error::LabError;
pub use guest::TinyGuest;
pub use hung_file::HungFile;
pub use libvirtd::{Libvirtd, libvirt_program};
pub use loop_device::LoopDevice;
pub use need::{lacks, missing, need};
pub use places::{cache, find, path_with_sbin};
pub use qemu::{Accelerator, Qemu};
pub use qmp::Qmp;
pub use snmpd::{Snmpd, snmp};
pub use snmptrapd::{Snmptrapd, Way};

/// Limit for what takes milliseconds on an idle machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Interval between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(2);

/// Repeats a check until it returns a value.
///
/// # Errors
///
/// [`LabError::TooLate`] if there is no value within `limit`.
pub fn wait_until<T>(
    limit: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> Result<T, LabError> {
    let start = Instant::now();
    loop {
        if let Some(seen) = look() {
            return Ok(seen);
        }
        if start.elapsed() > limit {
            return Err(LabError::TooLate { what: what.to_owned(), limit });
        }
        thread::sleep(PAUSE);
    }
}

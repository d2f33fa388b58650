//! The records that the BPF programs write, as numbers. Knows no SNMP.
//!
//! Reading order: [`Readings`] (what can be asked), [`Records`] (how it is read), [`Tracker`] and
//! [`Registration`] (which threads are counted); [`DiskTotals`] for disks that the hypervisor counts.

#[cfg(feature = "libvirt")]
pub mod block_statistics;
mod disk;
mod mapped;
mod readings;
mod records;
mod registration;
mod tracker;

pub use disk::{DiskIo, DiskTotals};
pub use readings::{Readings, ThreadSlot, VmSlot};
pub use records::{NotCounted, Records, ThreadReading, since_boot_ns};
pub use registration::Registration;
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

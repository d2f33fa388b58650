//! The records that the BPF programs write, as numbers. Knows no SNMP.
//!
//! Reading order: [`Readings`] (what can be asked), [`Records`] (how it is read), [`Tracker`] and
//! [`Registration`] (which threads are counted); [`ImageSlot`] for the images of disks, [`DiskTotals`] for disks that the hypervisor counts.

#[cfg(feature = "libvirt")]
pub mod block_statistics;
mod disk;
mod images;
mod mapped;
mod readings;
mod records;
mod registration;
mod self_test;
mod tracker;

pub use disk::{DiskIo, DiskTotals};
pub use images::{ImageSlot, Requests, TakenImage};
pub use readings::{Readings, ThreadSlot, VmSlot};
pub use records::{NotCounted, Records, ThreadReading, since_boot_ns};
pub use registration::Registration;
pub use self_test::self_test;
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

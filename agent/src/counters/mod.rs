//! The records that the BPF programs write, as numbers. Knows no SNMP.
//!
//! Reading order: [`Readings`] (what can be asked), [`Records`] (how it is read); [`ImageSlot`] for the images of disks, [`DiskTotals`] for disks that the hypervisor counts.

mod disk;
mod images;
pub(crate) mod mapped;
mod readings;
mod records;

pub use disk::{DiskIo, DiskTotals};
pub use images::{ImageRecordInfo, ImageSlot, Requests};
pub use readings::{Readings, ThreadSlot, VmSlot};
pub use records::{NoCounters, Records, ThreadReading, since_boot_ns};

//! The records that the BPF programs write, as numbers. Knows no SNMP.
//!
//! Reading order: [`Readings`] (what can be asked), [`Records`] (how it is read); [`ImageSlot`] for the images of disks, [`SlowValues`] for what the hypervisor counts.

mod disk;
mod images;
pub(crate) mod mapped;
mod readings;
mod records;
mod slow;

pub use disk::{DiskIo, DiskSize};
pub use images::{ImageRecordInfo, ImageSlot, Requests};
pub use readings::{Readings, ThreadSlot, VmSlot};
pub use records::{NoCounters, Records, ThreadReading, since_boot_ns};
pub use slow::{DiskKey, SlowValues, Taken};

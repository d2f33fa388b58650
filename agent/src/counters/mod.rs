//! Turns the records that the BPF programs write into numbers. Does not depend on SNMP.
//!
//! Reading order: [`Readings`] (the interface), [`Records`] (its implementation over mapped memory), [`ImageSlot`] (the
//! images of disks), [`SlowValues`] (counters of the hypervisor).

mod claims;
mod devices;
mod disk;
mod image_index;
mod image_shares;
mod images;
pub(crate) mod mapped;
mod places;
mod readings;
pub(crate) mod records;
mod request_shares;
mod shares;
mod slow;

pub use claims::ClaimError;
pub use disk::{DiskIo, DiskSize};
pub use images::{ImageRecordInfo, ImageSlot, Requests};
pub use places::VcpuPlace;
pub use readings::{CpuMask, Readings, ThreadReading, ThreadSlot, VmSlot};
pub use records::{NoCounters, Records, since_boot_ns};
pub use shares::{Fill, Holder};
pub(crate) use shares::{Lack, Shares};
pub use slow::{DiskKey, SlowValues, Taken};

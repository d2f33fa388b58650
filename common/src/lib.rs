//! What kvmeter's BPF programs and its agent share: record layouts, limits, flags.
//!
//! Every record lies in a `BPF_MAP_TYPE_ARRAY` that the agent maps into its memory. Maps are pinned and outlive the
//! agent, so the layout is an ABI between programs of different versions: a change of any size, offset, name or meaning
//! here is a change of [`LAYOUT`].
//!
//! Reading order: [`word`] (how a time is stored), [`ThreadRecord`], [`VmRecord`], [`ImageRecord`], [`Event`],
//! [`Field`].

#![no_std]

pub mod event;
pub mod field;
pub mod image;
pub mod names;
pub mod record;
pub mod word;

pub use event::{Event, EventKind};
pub use field::Field;
pub use image::{ImageKey, ImageRecord, InFlight, Layer, Layers};
pub use record::{Meta, Owner, ThreadRecord, VmRecord};

/// Version of the shared layout. The agent adopts pinned maps of this version only.
pub const LAYOUT: u32 = 4;

/// Thread records in a block, the unit in which VMs get them.
pub const BLOCK_LEN: usize = 8;

/// Number of thread records. Record 0 is never used: a slot is a `u16`, and 0 means none.
pub const THREADS: usize = 1 << 16;

/// Number of VM records. Record 0 is never used.
pub const VMS: usize = 4096;

/// Largest number of blocks of one VM: 768 threads.
pub const VM_BLOCKS: usize = 96;

/// Number of image records.
pub const IMAGES: usize = 4096;

/// Largest number of counted requests in flight.
pub const MAX_IN_FLIGHT: u32 = 32_768;

/// Buckets of the in-flight filter (`INFLIGHT_FILTER`).
pub const FILTER_LEN: u32 = 1024;

/// Slots in one element of the `TID_SLOT` array. The kernel rounds array elements up to 8 bytes, so four `u16` share one.
pub const SLOTS_PER_ELEMENT: usize = 4;

/// Size of the event ring in bytes (a power of two and a multiple of the page size).
pub const EVENT_RING_LEN: u32 = 64 * 1024;

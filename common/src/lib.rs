//! The words that kvmeter's BPF programs and its agent share: record layouts, limits, flags.
//!
//! Every record lives in a `BPF_MAP_TYPE_ARRAY` that the agent maps, so this layout is an ABI between
//! two programs that may be of different age: maps are pinned and outlive the agent. A change of any
//! size, offset or meaning here is a change of [`LAYOUT`].
//!
//! Reading order: [`word`] (how a time is kept), [`ThreadRecord`], [`VmRecord`], [`ImageRecord`], [`Event`],
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

/// Version of everything in this crate that both sides must agree on. Pinned maps of another version
/// are never adopted.
pub const LAYOUT: u32 = 4;

/// Thread records are handed to a VM in blocks of this many.
pub const BLOCK_LEN: usize = 8;

/// Number of thread records, of which number 0 is never used (a thread's slot is a `u16`, 0 = none).
pub const THREADS: usize = 1 << 16;

/// Number of VM records, of which number 0 is never used.
pub const VMS: usize = 4096;

/// The most blocks that one VM can hold: 768 threads.
pub const VM_BLOCKS: usize = 96;

/// Number of image records.
pub const IMAGES: usize = 4096;

/// The most requests that can be under way and counted.
pub const MAX_IN_FLIGHT: u32 = 32_768;

/// Numbers of requests under way.
pub const FILTER_LEN: u32 = 1024;

/// Slots that share one element of the `TID_SLOT` array: array elements are never smaller than
/// 8 octets, so four `u16` are packed into each.
pub const SLOTS_PER_ELEMENT: usize = 4;

/// Size of the event ring in octets (a power of two and a multiple of the page size).
pub const EVENT_RING_LEN: u32 = 64 * 1024;

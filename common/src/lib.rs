//! What kvmeter's BPF programs and its agent share: record layouts, limits, flags.
//!
//! Every record lies in a `BPF_MAP_TYPE_ARRAY` that the agent maps into its memory. Maps are pinned and outlive the
//! agent, so the layout is an ABI between programs of different versions: a change of any size, offset, name or meaning
//! here is a change of [`LAYOUT`].
//!
//! Reading order: [`word`] (how a time is stored), [`ThreadRecord`], [`VmRecord`], [`ImageRecord`], [`DeviceUser`],
//! [`Event`], [`Field`].

#![no_std]

pub mod device;
pub mod event;
pub mod field;
pub mod image;
pub mod names;
pub mod place;
pub mod record;
pub mod vcpu;
pub mod word;

pub use device::{DEVICE_BUCKETS, DEVICE_USERS, DeviceUser};
pub use event::{Event, EventKind};
pub use field::Field;
pub use image::{ImageKey, ImageRecord, InFlight, Layer, Layers};
pub use place::Place;
pub use record::{LastTimer, Meta, Owner, ThreadRecord, VmRecord};
pub use vcpu::Vcpu;

/// Version of the shared layout. The agent adopts pinned maps of this version only.
pub const LAYOUT: u32 = 11;

/// Thread records in a block, the unit in which VMs get them.
pub const BLOCK_LEN: usize = 8;

/// Largest number of thread records, and the number by default. Record 0 is never used: a slot is a `u16`, and 0 means none.
pub const THREADS: usize = 1 << 16;

/// Number of VM records by default. Record 0 is never used.
pub const VMS: usize = 4096;

/// Largest number of VM records.
pub const MAX_VMS: usize = 1 << 15;

/// Largest number of blocks of one VM: 3,584 threads. KVM has at most 4,096 vCPUs in a VM, most builds 1,024.
pub const VM_BLOCKS: usize = 448;

/// Blocks of a VM, the first ones, in which the kernel looks for a free record of a new thread: 768 threads. It bounds the
/// work of one clone(2) and of the verifier; the agent, which looks in all blocks, gives a record to a thread that got none.
pub const SEARCHED_BLOCKS: usize = 96;

const _: () = assert!(SEARCHED_BLOCKS <= VM_BLOCKS);

/// Number of image records by default.
pub const IMAGES: usize = 4096;

/// Largest number of image records: a slot is a `u16`.
pub const MAX_IMAGES: usize = 1 << 16;

/// Most image records of files that belong to no disk yet which the kernel may claim for one VM; the agent allows less where the
/// table or a user's share has less. With as many of them the VM is taken for a file server (9p, virtiofs).
pub const VM_NEW_IMAGES: usize = 64;

/// Largest number of counted requests in flight.
pub const MAX_IN_FLIGHT: u32 = 65_536;

/// Largest number of counted requests of one VM in flight.
pub const VM_IN_FLIGHT: u32 = MAX_IN_FLIGHT / 16;

/// Largest number of counted requests in flight of the VMs of one user other than root and libvirt.
pub const USER_IN_FLIGHT: u32 = MAX_IN_FLIGHT / 4;

/// Largest number of counted requests in flight of the VMs of all such users.
pub const USERS_IN_FLIGHT: u32 = MAX_IN_FLIGHT / 2;

/// Buckets of the in-flight filter (`INFLIGHT_FILTER`).
pub const FILTER_LEN: u32 = 1024;

/// Slots in one element of the `TID_SLOT` array. The kernel rounds array elements up to 8 bytes, so four `u16` share one.
pub const SLOTS_PER_ELEMENT: usize = 4;

/// Size of the event ring in bytes (a power of two and a multiple of the page size).
pub const EVENT_RING_LEN: u32 = 64 * 1024;

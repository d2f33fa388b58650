//! The records of images, as QEMU calls the files and devices behind virtual disks, and the I/O counted in them.
//!
//! The records are a hash table with open addressing: a lookup begins at [`ImageKey::home_slot`], and a new record is the
//! first free one from there. Both sides claim records; only the agent frees them. A race, or a record freed within the
//! probe length, can leave two records of one image: both count, and the image's I/O is their sum.

use crate::IMAGES;

/// Probe length of the open-addressing table.
pub const PROBES: usize = 16;

/// Buckets of a latency histogram: four to each doubling, from 2^10 ns (1 µs) to 2^34 ns (17 s).
pub const LATENCY_BUCKETS: usize = 96;

/// log2 of the latency in ns at which the first octave of buckets begins.
const FIRST_OCTAVE: u32 = 10;

/// The I/O of one image in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DirectionCounters {
    /// Requests that the kernel completed without an error.
    pub requests: u64,
    /// Bytes that they moved.
    pub bytes: u64,
    /// Time from submission to completion in ns, summed over them.
    pub latency_ns: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Latency histogram of the completed requests; see [`bucket_of`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

/// The I/O of a VM on one image. The kernel adds to it atomically on any CPU; the agent reads it.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct ImageRecord {
    /// [`ImageKey::owner`]; 0 = free. Both sides claim a free record by compare-and-swap.
    pub owner: u64,
    /// [`ImageKey::file`]; 0 = closed: the record keeps its counts and receives no new requests.
    pub file: u64,
    /// Number of the [`Layer`] whose programs count in this record.
    pub layer: u32,
    /// vmStorageIndex of the disk to which the image belongs; 0 = unassigned; above every vmStorageIndex = the counts
    /// are another record's. The agent writes it, and reads it back after a restart.
    pub storage: u32,
    /// Zero.
    pub reserved: [u64; 5],
    /// Reads.
    pub read: DirectionCounters,
    /// Writes.
    pub write: DirectionCounters,
}

/// The layer of the kernel in which an image's requests are counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Layer {
    /// Direct I/O in iomap: files opened with `O_DIRECT`.
    Direct = 1,
    /// The block layer: block devices opened with `O_DIRECT`.
    Block = 2,
    /// Entry and exit of all system calls, and io_uring.
    Call = 3,
    /// The kernel's functions for single system calls and for io_submit(2), and io_uring.
    Function = 4,
    /// io_uring, and synchronous direct I/O in iomap.
    Ring = 5,
}

/// The layers for which one program counts. Several attached programs may see a request; the layer of the image's record
/// decides which one of them counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layers {
    /// Layer of the records that the program creates.
    pub for_new: Layer,
    bits: u32,
}

impl Layers {
    /// A single layer.
    #[inline(always)]
    #[must_use]
    pub const fn only(layer: Layer) -> Self {
        Self { for_new: layer, bits: 1 << layer as u32 }
    }

    /// These layers and another one.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, layer: Layer) -> Self {
        Self { for_new: self.for_new, bits: self.bits | 1 << layer as u32 }
    }

    /// Whether the program counts in a record of this layer.
    #[inline(always)]
    #[must_use]
    pub const fn have(self, layer: u32) -> bool {
        self.bits >> (layer & 31) & 1 != 0
    }
}

/// What identifies an image in the kernel.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ImageKey {
    /// Slot of the VM's record.
    pub vm: u16,
    /// The kernel's device number, `major << 20 | minor`: of a file's filesystem, or of a block device itself.
    pub device: u32,
    /// Inode number of a file; [`Self::NO_FILE`] = a block device.
    pub file: u64,
}

impl ImageKey {
    /// The image is a block device.
    pub const NO_FILE: u64 = u64::MAX;

    /// Set in every owner word, so that none is 0.
    const CLAIMED: u64 = 1 << 16;

    /// Owner word: VM and device; never 0.
    #[inline(always)]
    #[must_use]
    pub const fn owner(self) -> u64 {
        (self.device as u64) << 32 | Self::CLAIMED | self.vm as u64
    }

    /// Slot at which the lookup of this image begins.
    #[inline(always)]
    #[must_use]
    pub const fn home_slot(self) -> u32 {
        let mixed = (self.owner() ^ self.file.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) % IMAGES as u64) as u32
    }

    /// The key with this owner word and file.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "VM and device are parts of the word")]
    pub const fn of(owner: u64, file: u64) -> Self {
        Self { vm: owner as u16, device: (owner >> 32) as u32, file }
    }
}

/// A request that was submitted and has not been completed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// Time of submission: `CLOCK_MONOTONIC` in ns.
    pub start: u64,
    /// Offset in the file; sector of a block device. 0 where the program does not know it.
    pub position: u64,
    /// Bytes requested, clipped at the end of the file. 0 where the program does not know it.
    pub bytes: u64,
    /// Owner word of the image's record at submission. Keeps a late completion from being counted in a record that was
    /// reused since.
    pub owner: u64,
    /// Slot of the image's record; of the VM's record for io_uring, whose image is known at completion only.
    pub slot: u32,
    /// Bits of [`InFlight::WRITE`] and the following constants.
    pub flags: u32,
}

impl InFlight {
    /// The request writes.
    pub const WRITE: u32 = 1;
    /// Submitted with `IOCB_NOWAIT`; may be resubmitted without it.
    pub const NO_WAIT: u32 = 2;
    /// Asynchronous: completes exactly once. If its address is submitted again, the completion was missed.
    pub const ASYNC: u32 = 4;
    /// Completed with `-EAGAIN`; a resubmission follows.
    pub const RETRIED: u32 = 8;
}

/// The bucket of a latency in ns.
#[inline(always)]
#[must_use]
pub const fn bucket_of(ns: u64) -> usize {
    if ns >> FIRST_OCTAVE == 0 {
        return 0;
    }
    let octave = 63 - ns.leading_zeros();
    let quarter = (ns >> (octave - 2)) & 3;
    let bucket = ((octave - FIRST_OCTAVE) as usize) * 4 + quarter as usize;
    if bucket < LATENCY_BUCKETS { bucket } else { LATENCY_BUCKETS - 1 }
}

/// The lowest latency in ns of a bucket; bucket 0 begins at 0.
#[must_use]
pub const fn bucket_start(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    (4 + bucket as u64 % 4) << (FIRST_OCTAVE as u64 - 2 + bucket as u64 / 4)
}

const _: () = {
    assert!(size_of::<DirectionCounters>() == 32 + 8 * LATENCY_BUCKETS);
    assert!(size_of::<ImageRecord>() == 64 + 2 * size_of::<DirectionCounters>());
    assert!(size_of::<InFlight>() == 40);
    assert!(IMAGES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(bucket_of(0), 0);
        assert_eq!(bucket_of(1023), 0);
        assert_eq!(bucket_of(u64::MAX), LATENCY_BUCKETS - 1);
        for bucket in 1..LATENCY_BUCKETS {
            let start = bucket_start(bucket);
            assert_eq!(bucket_of(start), bucket);
            assert_eq!(bucket_of(start - 1), bucket - 1);
        }
    }

    #[test]
    fn images_spread_over_the_table() {
        let mut taken = [0_u8; IMAGES];
        // A hundred VMs with ten images each, whose inodes follow each other.
        for vm in 0..100 {
            for file in 0..10 {
                let key =
                    ImageKey { vm, device: 254 << 20, file: 131_072 + u64::from(vm) * 10 + file };
                let mut slot = key.home_slot() as usize;
                let mut probes = 1;
                while taken[slot] != 0 {
                    slot = (slot + 1) % IMAGES;
                    probes += 1;
                }
                taken[slot] = 1;
                assert!(probes <= PROBES, "{key:?} takes {probes} probes");
            }
        }
    }
}

//! The records of the files and devices behind virtual disks, called images as QEMU does, and what is counted in them.
//!
//! The records are a table with open addressing: an image's record is looked for from [`ImageKey::home_slot`] on, and
//! the first free one on the way is taken. Both sides take records; the agent alone frees them. Where a race or a
//! freed record on the way makes two records of one image, both count, and its I/O is the sum.

use crate::IMAGES;

/// So many records are looked at for an image.
pub const PROBES: usize = 16;

/// Buckets of a histogram of latencies: four to each doubling, from 2^10 ns (1 µs) to 2^34 ns (17 s).
pub const LATENCY_BUCKETS: usize = 96;

/// log2 of the ns at which the second octave of buckets begins.
const FIRST_OCTAVE: u32 = 10;

/// The I/O of one image in one direction.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct DirectionCounters {
    /// Requests that the kernel completed without an error.
    pub requests: u64,
    /// Octets that they moved.
    pub octets: u64,
    /// Time from submission to completion in ns, summed over them.
    pub latency_ns: u64,
    /// Requests that ended with an error.
    pub errors: u64,
    /// How many requests took how long; see [`bucket_of`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

/// The I/O of a VM on one image, added to by the kernel on any CPU and read by the agent.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct ImageRecord {
    /// [`ImageKey::owner`]; 0 = free. Taken by compare-and-swap, by either side.
    pub owner: u64,
    /// [`ImageKey::file`]; 0 = no image leads here (any more).
    pub file: u64,
    /// The [`Layer`] by which the image is counted.
    pub layer: u32,
    /// vmStorageIndex of the disk to which it belongs; 0 = not known. Written by the agent, which finds it here when
    /// it starts anew.
    pub storage: u32,
    /// Zero.
    pub reserved: [u64; 5],
    /// What was read.
    pub read: DirectionCounters,
    /// What was written.
    pub write: DirectionCounters,
}

/// Where in the kernel an image's requests are counted.
#[repr(u32)]
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Layer {
    /// iomap's direct I/O: files that are opened with `O_DIRECT`.
    Direct = 1,
    /// The block layer's queue: block devices that are opened with `O_DIRECT`.
    Block = 2,
    /// Where system calls begin and end, and requests of io_uring.
    Call = 3,
    /// Functions of the kernel for system calls and for io_submit(2), and requests of io_uring.
    Function = 4,
    /// Requests of io_uring, and direct I/O of iomap for which a thread waits.
    Ring = 5,
}

/// Those of which a program counts requests. Of all programs that see a request one counts it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Layers {
    /// The one of records that it takes itself.
    pub for_new: Layer,
    bits: u32,
}

impl Layers {
    /// One alone.
    #[inline(always)]
    #[must_use]
    pub const fn only(layer: Layer) -> Self {
        Self { for_new: layer, bits: 1 << layer as u32 }
    }

    /// These and another.
    #[inline(always)]
    #[must_use]
    pub const fn and(self, layer: Layer) -> Self {
        Self { for_new: self.for_new, bits: self.bits | 1 << layer as u32 }
    }

    /// Whether a record's layer is among them.
    #[inline(always)]
    #[must_use]
    pub const fn have(self, layer: u32) -> bool {
        self.bits >> (layer & 31) & 1 != 0
    }
}

/// What the kernel sees of an image.
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

    /// Set in the owner word of each record that is taken.
    const TAKEN: u64 = 1 << 16;

    /// VM and device in one word, never 0.
    #[inline(always)]
    #[must_use]
    pub const fn owner(self) -> u64 {
        (self.device as u64) << 32 | Self::TAKEN | self.vm as u64
    }

    /// The slot of the first record that is looked at for this image.
    #[inline(always)]
    #[must_use]
    pub const fn home_slot(self) -> u32 {
        let mixed = (self.owner() ^ self.file.rotate_left(20)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((mixed >> 32) % IMAGES as u64) as u32
    }

    /// The key with this owner word and this file.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the parts of the word are what is asked for"
    )]
    pub const fn of(owner: u64, file: u64) -> Self {
        Self { vm: owner as u16, device: (owner >> 32) as u32, file }
    }
}

/// A request that was submitted and is not completed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// When it was submitted, `CLOCK_MONOTONIC` in ns.
    pub start: u64,
    /// Where in the file or device.
    pub position: u64,
    /// Octets that are asked for and there.
    pub octets: u64,
    /// Whose the image's record was then. A request whose end was missed may be found when the record is another's.
    pub owner: u64,
    /// Slot of the image's record; of the VM's, where the image is known at the completion only.
    pub slot: u32,
    /// Bits of [`InFlight::WRITE`] and the others.
    pub flags: u32,
}

impl InFlight {
    /// It writes.
    pub const WRITE: u32 = 1;
    /// It is not to wait, and may come again as one that may.
    pub const NO_WAIT: u32 = 2;
    /// It ends once and certainly, so that it has ended where its address is used for another.
    pub const ASYNC: u32 = 4;
    /// It was told to come again.
    pub const RETRIED: u32 = 8;
}

/// The bucket of a latency.
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

/// The lowest latency in ns of a bucket; the first has all that is below the second.
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
                let mut looks = 1;
                while taken[slot] != 0 {
                    slot = (slot + 1) % IMAGES;
                    looks += 1;
                }
                taken[slot] = 1;
                assert!(looks <= PROBES, "{key:?} takes {looks} looks");
            }
        }
    }
}

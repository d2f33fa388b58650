//! The records of images, as QEMU calls the files and devices behind virtual disks, and the I/O counted in them.
//!
//! The records are a hash table in buckets of [`BUCKET_LEN`]. An image's record is in one of its two buckets
//! ([`ImageKey::slot`]), a new one in the bucket with more free records. Both sides claim records; only the agent frees
//! them. A race can leave two records of one image: both count, and the image's I/O is their sum.

/// Records in a bucket of the table.
pub const BUCKET_LEN: u32 = 8;

/// Records in which an image's may be: two buckets.
pub const PROBES: u32 = 2 * BUCKET_LEN;

/// Buckets of a table with this number of records: a power of two, as that is.
#[must_use]
pub const fn buckets(images: usize) -> u64 {
    images as u64 / BUCKET_LEN as u64
}

/// Buckets of a latency histogram: four to each doubling, from 2^10 ns (1 µs) to 2^34 ns (17 s). The last one has no end.
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
    /// None: no program counts in the record any more, because the counts may have requests of another process.
    Mixed = 6,
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

    /// Hash of the image in tables with this [secret](crate::Meta::secret).
    ///
    /// The secret is mixed with the owner before the file is: the numbers of files are a user's choice on a filesystem of the
    /// user's own, and of no two owners it is known which of their files have one hash.
    #[inline(always)]
    #[must_use]
    pub const fn hash(self, secret: u64) -> u64 {
        mix(mix(self.owner() ^ secret) ^ self.file)
    }

    /// Slot of the record with number `probe`, below [`PROBES`], for an image with this [`hash`](Self::hash), in a table with
    /// this number of [`buckets`].
    #[inline(always)]
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the number of a record is below `MAX_IMAGES`"
    )]
    pub const fn slot(hash: u64, probe: u32, buckets: u64) -> u32 {
        let mask = buckets - 1;
        let first = hash & mask;
        let bucket = if probe < BUCKET_LEN {
            first
        } else {
            // Without a branch for a division by 0, which the verifier would not take. Never the same as the first one.
            let further = match (hash >> 32).checked_rem(mask) {
                Some(further) => further,
                None => 0,
            };
            (first + 1 + further) & mask
        };
        bucket as u32 * BUCKET_LEN + probe % BUCKET_LEN
    }

    /// 1 if a record with this owner word is claimed, 0 if it is free.
    #[inline(always)]
    #[must_use]
    pub const fn taken_bit(owner: u64) -> u32 {
        ((owner / Self::CLAIMED) & 1) as u32
    }

    /// The free record to be claimed: the first one of the bucket that has more of them. `taken` has a bit for each of the
    /// [`PROBES`] records that is claimed. `None`: both buckets are full.
    #[inline(always)]
    #[must_use]
    pub const fn free_probe(taken: u32) -> Option<u32> {
        const BUCKET: u32 = (1 << BUCKET_LEN) - 1;
        let (first, second) = (!taken & BUCKET, !taken >> BUCKET_LEN & BUCKET);
        let free =
            if second.count_ones() > first.count_ones() { second << BUCKET_LEN } else { first };
        let mut probe = 0;
        while probe < PROBES {
            if free >> probe & 1 != 0 {
                return Some(probe);
            }
            probe += 1;
        }
        None
    }

    /// The key with this owner word and file.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "VM and device are parts of the word")]
    pub const fn of(owner: u64, file: u64) -> Self {
        Self { vm: owner as u16, device: (owner >> 32) as u32, file }
    }
}

/// The finalizer of SplitMix64: every bit depends on every bit of the word.
#[inline(always)]
const fn mix(word: u64) -> u64 {
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
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
    /// Owner word of the image's record at submission. With `file` it keeps a late completion from being counted in a record
    /// that was reused since.
    pub owner: u64,
    /// [`ImageKey::file`] of the image.
    pub file: u64,
    /// Slot of the image's record; [`InFlight::NO_IMAGE`].
    pub slot: u32,
    /// Bits of [`InFlight::WRITE`] and the following constants.
    pub flags: u32,
}

impl InFlight {
    /// The image is known at completion only. The VM is in the owner word.
    pub const NO_IMAGE: u32 = u32::MAX;

    /// The request writes.
    pub const WRITE: u32 = 1;
    /// Submitted with `IOCB_NOWAIT`; may be resubmitted without it.
    pub const NO_WAIT: u32 = 2;
    /// Asynchronous: completes exactly once. If its address is submitted again, the completion was missed.
    pub const ASYNC: u32 = 4;
    /// Completed with `-EAGAIN`; a resubmission follows.
    pub const RETRIED: u32 = 8;

    /// Place in the flags of [`VmRecord::account`](crate::VmRecord::account) at submission, which has 16 bits.
    pub const ACCOUNT: u32 = 16;

    /// The account that the request is counted in.
    #[inline(always)]
    #[must_use]
    pub const fn account(&self) -> u16 {
        (self.flags >> Self::ACCOUNT) as u16
    }
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
    assert!(size_of::<InFlight>() == 48);
    assert!(crate::IMAGES.is_power_of_two() && crate::MAX_IMAGES.is_power_of_two());
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IMAGES;

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

    const SECRET: u64 = 0x0123_4567_89ab_cdef;

    /// The number of images in the table when the first one finds no record.
    fn capacity(key: impl Fn(u64) -> ImageKey) -> usize {
        let mut taken = [0; IMAGES];
        for number in 0.. {
            let key = key(number as u64);
            let slot = |probe| ImageKey::slot(key.hash(SECRET), probe, buckets(IMAGES)) as usize;
            let bits = (0..PROBES).map(|probe| ImageKey::taken_bit(taken[slot(probe)]) << probe);
            let Some(probe) = ImageKey::free_probe(bits.sum()) else { return number };
            taken[slot(probe)] = key.owner();
        }
        unreachable!("the table is finite")
    }

    #[test]
    fn seven_tenths_of_the_table_can_be_used() {
        // Inodes that follow each other, ten for each VM, and random ones; block devices with following numbers.
        let following = |number: u64| ImageKey {
            vm: u16::try_from(number / 10).unwrap(),
            device: 254 << 20,
            file: 131_072 + number,
        };
        let random = |number: u64| {
            let mut file = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
            for factor in [0xbf58_476d_1ce4_e5b9_u64, 0x94d0_49bb_1331_11eb] {
                file = (file ^ file >> 29).wrapping_mul(factor);
            }
            ImageKey { vm: u16::try_from(number % 100).unwrap(), device: 1 << 20, file }
        };
        let devices = |number: u64| ImageKey {
            vm: u16::try_from(number / 10).unwrap(),
            device: 253 << 20 | u32::try_from(number).unwrap(),
            file: ImageKey::NO_FILE,
        };
        for capacity in [capacity(following), capacity(random), capacity(devices)] {
            assert!(capacity >= IMAGES * 7 / 10, "{capacity} images");
        }
    }

    #[test]
    fn files_that_have_one_bucket_with_a_secret_have_many_with_another() {
        let bucket = |key: ImageKey, secret, probe| {
            ImageKey::slot(key.hash(secret), probe, buckets(IMAGES)) / BUCKET_LEN
        };
        let victim = ImageKey { vm: 3, device: 254 << 20, file: 131_072 };
        // Of a VM with the victim's slot, too: what a user knows of the hash without the secret must not be of use.
        for vm in [3, 9] {
            let files = (1..).map(|file| ImageKey { vm, ..ImageKey { file, ..victim } });
            let aimed = files.filter(|key| bucket(*key, 0, 0) == bucket(victim, 0, 0));
            let (mut used, mut of_victim) = ([false; IMAGES / BUCKET_LEN as usize], 0);
            for key in aimed.take(1000) {
                used[bucket(key, SECRET, 0) as usize] = true;
                of_victim += u32::from(bucket(key, SECRET, 0) == bucket(victim, SECRET, 0));
            }
            let used = used.iter().filter(|used| **used).count();
            assert!(
                used > 300 && of_victim < 20,
                "{vm}: {used} buckets, {of_victim} in the victim's"
            );
        }
    }

    #[test]
    fn two_keys_of_one_hash_differ_with_another_secret() {
        // The user's file has the victim's hash, if the hash of an owner is known.
        let victim = ImageKey { vm: 3, device: 254 << 20, file: 131_072 };
        let own = ImageKey { vm: 9, device: 77, file: 0 };
        let file = mix(victim.owner()) ^ victim.file ^ mix(own.owner());
        let own = ImageKey { file, ..own };
        assert_eq!(own.hash(0), victim.hash(0));
        for secret in 1..1000 {
            assert_ne!(own.hash(secret), victim.hash(secret));
        }
    }

    #[test]
    fn the_two_buckets_of_an_image_differ() {
        for file in 0..10_000 {
            let hash = ImageKey { vm: 1, device: 2, file }.hash(SECRET);
            for images in [32, IMAGES, crate::MAX_IMAGES] {
                let slot = |probe| ImageKey::slot(hash, probe, buckets(images));
                assert_ne!(slot(0), slot(BUCKET_LEN));
                assert!((slot(PROBES - 1) as usize) < images);
            }
        }
    }
}

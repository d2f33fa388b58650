//! Sizes of the tables of records.

use std::fmt;

use kvmeter_common::{
    BLOCK_LEN, IMAGES, MAX_IMAGES, MAX_VMS, THREADS, VMS, image::BUCKET_LEN, names,
};

/// Sizes of the tables in records, with those that are never used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Sizes {
    /// Records of VMs.
    pub vms: usize,
    /// Records of threads: whole blocks.
    pub threads: usize,
    /// Records of images: a power of two.
    pub images: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { vms: VMS, threads: THREADS, images: IMAGES }
    }
}

impl Sizes {
    /// Tables for this many VMs, threads and images at least, as far as slots have numbers for them.
    #[must_use]
    pub fn of(vms: u32, threads: u32, images: u32) -> Self {
        let [vms, threads, images] = [vms, threads, images].map(|number| number as usize);
        Self {
            // Record 0 means none, and so does block 0.
            vms: (vms + 1).min(MAX_VMS),
            threads: ((threads.div_ceil(BLOCK_LEN) + 1) * BLOCK_LEN).min(THREADS),
            images: images.next_power_of_two().min(MAX_IMAGES),
        }
    }

    /// Whether the programs and the agent can count in tables of these sizes. Tables that are found may have any.
    pub(super) const fn are_valid(self) -> bool {
        let Self { vms, threads, images } = self;
        // Beside record 0 of VMs and block 0 of threads, there is at least one.
        vms >= 2
            && vms <= MAX_VMS
            && threads >= 2 * BLOCK_LEN
            && threads <= THREADS
            && threads.is_multiple_of(BLOCK_LEN)
            && images >= BUCKET_LEN as usize
            && images <= MAX_IMAGES
            && images.is_power_of_two()
    }

    /// Records that can be used: of VMs, threads and images.
    #[must_use]
    pub const fn usable(self) -> [usize; 3] {
        [self.vms.saturating_sub(1), self.threads.saturating_sub(BLOCK_LEN), self.images]
    }

    /// The maps with these sizes, each with the key of `[limits]` in the configuration.
    pub(super) const fn maps(self) -> [(&'static str, &'static str, usize); 3] {
        [
            (names::VM, "vms", self.vms),
            (names::THREAD, "threads", self.threads),
            (names::IMAGE, "images", self.images),
        ]
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [vms, threads, images] = self.usable();
        write!(f, "{vms} VMs, {threads} threads and {images} images")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_what_is_configured() {
        assert_eq!(Sizes::of(4095, 65_528, 4096), Sizes::default());
        assert_eq!(Sizes::of(16, 128, 256), Sizes { vms: 17, threads: 136, images: 256 });
        assert_eq!(Sizes::of(16, 129, 257), Sizes { vms: 17, threads: 144, images: 512 });
        let largest = Sizes { vms: 1 << 15, threads: 1 << 16, images: 1 << 16 };
        assert_eq!(Sizes::of(32_767, 65_528, 65_536), largest);
        assert_eq!(Sizes::of(u32::MAX, u32::MAX, u32::MAX / 2), largest);
        assert_eq!(largest.to_string(), "32767 VMs, 65528 threads and 65536 images");
    }

    #[test]
    fn tables_that_the_programs_cannot_use_are_refused() {
        for [vms, threads, images] in [[1; 3], [16, 128, 256], [4095, 65_528, 4096], [u32::MAX; 3]]
        {
            let images = images.min(65_536);
            assert!(Sizes::of(vms, threads, images).are_valid() == (images >= 8), "{images}");
        }
        let good = Sizes { vms: 2, threads: 16, images: 8 };
        assert!(good.are_valid());
        for bad in [
            Sizes { vms: 0, ..good },
            Sizes { vms: 1, ..good },
            Sizes { vms: MAX_VMS + 1, ..good },
            Sizes { threads: 0, ..good },
            Sizes { threads: BLOCK_LEN, ..good },
            Sizes { threads: 17, ..good },
            Sizes { threads: THREADS + BLOCK_LEN, ..good },
            Sizes { images: 0, ..good },
            Sizes { images: 4, ..good },
            Sizes { images: 24, ..good },
            Sizes { images: MAX_IMAGES * 2, ..good },
        ] {
            assert!(!bad.are_valid(), "{bad:?}");
        }
    }
}

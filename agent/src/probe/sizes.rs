//! Sizes of the tables of records.

use kvmeter_common::{BLOCK_LEN, IMAGES, MAX_IMAGES, MAX_VMS, THREADS, VMS, names};

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

    /// The maps with these sizes, each with the key of `[limits]` in the configuration.
    pub(super) const fn maps(self) -> [(&'static str, &'static str, usize); 3] {
        [
            (names::VM, "vms", self.vms),
            (names::THREAD, "threads", self.threads),
            (names::IMAGE, "images", self.images),
        ]
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
    }
}

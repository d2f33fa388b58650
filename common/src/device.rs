//! Which VMs have a block device as an image. A request that a limit of a cgroup delays (blk-throttle) reaches the block
//! layer's queue from a worker of the kernel; the device and the request's cgroup say then which VM made it.
//!
//! A hash table in buckets of [`DEVICE_USERS`]; the agent writes it, the programs read it.

/// VMs in a bucket.
pub const DEVICE_USERS: usize = 8;

/// Buckets of the table.
pub const DEVICE_BUCKETS: usize = 1024;

/// A VM that has a block device as an image, in one word: the kernel's device number in the upper half, the slot of the VM's
/// record in the lower. 0 = free.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(transparent)]
pub struct DeviceUser(pub u64);

impl DeviceUser {
    /// The word of a VM and a device.
    #[inline(always)]
    #[must_use]
    pub const fn new(device: u32, vm_slot: u16) -> Self {
        Self((device as u64) << 32 | vm_slot as u64)
    }

    /// The device number.
    #[inline(always)]
    #[must_use]
    pub const fn device(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Slot of the VM's record.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the slot is bits 0 to 15")]
    pub const fn vm_slot(self) -> u16 {
        self.0 as u16
    }

    /// The bucket of a device.
    #[inline(always)]
    #[must_use]
    pub const fn bucket(device: u32) -> u32 {
        // Minor numbers follow each other.
        device.wrapping_mul(0x9e37_79b9) >> (32 - DEVICE_BUCKETS.ilog2())
    }
}

const _: () = assert!(DEVICE_BUCKETS.is_power_of_two());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_with_following_numbers_are_in_different_buckets() {
        let mut used = [0_u8; DEVICE_BUCKETS];
        for (minor, _) in (0..).zip([(); DEVICE_BUCKETS]) {
            used[DeviceUser::bucket(253 << 20 | minor) as usize] += 1;
        }
        assert!(used.iter().all(|devices| *devices <= 3));
        let user = DeviceUser::new(253 << 20 | 7, 4095);
        assert_eq!((user.device(), user.vm_slot()), (253 << 20 | 7, 4095));
    }
}

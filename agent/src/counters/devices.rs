//! Which VMs have a block device as an image, for requests that the kernel submits in a worker of its own.

use std::{
    collections::BTreeSet,
    sync::atomic::Ordering::{AcqRel, Acquire, Relaxed},
};

use kvmeter_common::{DeviceUser, ImageKey, Layer, VmRecord};

use super::{Records, VmSlot, mapped::SharedDevices};

impl Records {
    /// Notes that a VM has a block device as an image. Returns false if the table has no room for it.
    pub(super) fn add_device_user(&self, device: u32, vm: u16) -> bool {
        let user = DeviceUser::new(device, vm).0;
        let Some(users) = self.users_of(device) else { return false };
        users.iter().any(|cell| cell.load(Acquire) == user)
            || users.iter().any(|cell| cell.compare_exchange(0, user, AcqRel, Relaxed).is_ok())
    }

    /// Makes the table agree with the image records, at the start: an earlier agent may have left VMs that do not have the device.
    pub(super) fn restore_device_users(&self) {
        for cell in self.devices.iter().flatten() {
            let user = DeviceUser(cell.load(Acquire));
            let (vm, device) = (user.vm_slot(), user.device());
            if self.images_of(ImageKey { vm, device, file: ImageKey::NO_FILE }).next().is_none() {
                self.remove_device_user(device, vm);
            }
        }
        for image in self.image_records() {
            if image.is_open() && self.has_layer(image.slot, Layer::Block) {
                self.add_device_user(image.key.device, image.key.vm);
            }
        }
    }

    /// Undoes [`add_device_user`](Self::add_device_user).
    pub(super) fn remove_device_user(&self, device: u32, vm: u16) {
        let user = DeviceUser::new(device, vm).0;
        for cell in self.users_of(device).into_iter().flatten() {
            let _ = cell.compare_exchange(user, 0, AcqRel, Relaxed);
        }
    }

    /// Notes the block devices that a VM has open, counted or not. Returns those that it was not known to have.
    pub(crate) fn note_open_devices(&self, vm: VmSlot, devices: BTreeSet<u32>) -> BTreeSet<u32> {
        let mut images = self.image_index.lock();
        let known = &mut images.of_vm(vm).open_devices;
        let opened = devices.difference(known).copied().collect();
        *known = devices;
        opened
    }

    /// Whether the process is a VM that makes no request on this block device, as far as is known: none of its images is the device,
    /// by whatever method they are counted, and it does not have the device open.
    pub(crate) fn is_vm_without(&self, pid: u32, device: u32) -> bool {
        let mut slots = (0..=u16::MAX).map(VmSlot).take(self.vms.len());
        let Some(vm) = slots.find(|slot| self.is_vm(*slot, pid)) else { return false };
        let key = ImageKey { vm: vm.0, device, file: ImageKey::NO_FILE };
        self.images_of(key).next().is_none()
            && !self.image_index.lock().of_vm(vm).open_devices.contains(&device)
    }

    /// Whether a limit of a cgroup has delayed a request of the VM on a block device.
    pub(crate) fn has_delays(&self, vm: VmSlot) -> bool {
        let flags = self.vms.get(usize::from(vm.0)).map(|vm| vm.flags.load(Acquire));
        flags.is_some_and(|flags| flags & VmRecord::DELAYED != 0)
    }

    /// Whether the VM was seen to call io_submit(2).
    pub(crate) fn has_submitted(&self, vm: VmSlot) -> bool {
        let flags = self.vms.get(usize::from(vm.0)).map(|vm| vm.flags.load(Acquire));
        flags.is_some_and(|flags| flags & VmRecord::SUBMITS != 0)
    }

    fn users_of(&self, device: u32) -> Option<&SharedDevices> {
        self.devices.get(DeviceUser::bucket(device) as usize)
    }
}

#[cfg(test)]
mod tests {
    use kvmeter_common::DEVICE_USERS;

    use super::*;
    use crate::counters::ClaimError;

    /// The VMs that have a block device as an image.
    fn users(records: &Records, device: u32) -> Vec<VmSlot> {
        let users = records.users_of(device).into_iter().flatten();
        let users = users.map(|cell| DeviceUser(cell.load(Acquire)));
        let is_of = move |user: &DeviceUser| user.0 != 0 && user.device() == device;
        users.filter(is_of).map(|user| VmSlot(user.vm_slot())).collect()
    }

    #[test]
    fn a_vm_has_a_device_until_its_last_record_is_freed() {
        let records = Records::in_memory();
        let key = |vm, device| ImageKey { vm, device, file: ImageKey::NO_FILE };
        let claim = |vm, device| records.claim_image(key(vm, device), Layer::Block).unwrap();
        let users = |device| users(&records, device);
        let [a, b] = [1, 2].map(|vm| claim(vm, 7 << 20));
        let other = claim(1, 7 << 20 | 1);
        // A file on a filesystem on the device is no use of the device.
        let on_it = ImageKey { vm: 1, device: 7 << 20, file: 5 };
        let file = records.claim_image(on_it, Layer::Direct).unwrap();
        assert_eq!(users(7 << 20), [VmSlot(1), VmSlot(2)]);
        assert_eq!(claim(1, 7 << 20), a);
        records.free_image(file);
        assert_eq!(users(7 << 20), [VmSlot(1), VmSlot(2)]);
        records.free_image(a);
        assert_eq!((users(7 << 20), users(7 << 20 | 1)), (vec![VmSlot(2)], vec![VmSlot(1)]));
        records.free_image(b);
        records.free_image(other);
        assert!(records.devices.iter().flatten().all(|cell| cell.load(Relaxed) == 0));
        // A request of one that finds no room could not be told from others: it is not counted.
        for vm in 1..=u16::try_from(DEVICE_USERS).unwrap() {
            claim(vm, 9 << 20);
        }
        assert_eq!(records.claim_image(key(99, 9 << 20), Layer::Block), Err(ClaimError::Device));
    }

    #[test]
    fn a_vm_uses_a_device_by_whatever_method_it_is_counted() {
        let records = Records::in_memory();
        let device = 7 << 20;
        for vm in 1..=4 {
            records.vms[usize::from(vm)].tgid.store(100 * u64::from(vm), Relaxed);
            records.note_open_devices(VmSlot(vm), BTreeSet::new());
        }
        let claim = |vm, device, layer| {
            let key = ImageKey { vm, device, file: ImageKey::NO_FILE };
            records.claim_image(key, layer).unwrap()
        };
        claim(1, device, Layer::Block);
        let by_calls = claim(2, device, Layer::Call);
        records.note_open_devices(VmSlot(3), BTreeSet::from([device]));
        claim(4, device | 1, Layer::Block);
        let without = || [100, 200, 300, 400].map(|pid| records.is_vm_without(pid, device));
        assert_eq!(without(), [false, false, false, true]);
        assert!(!records.is_vm_without(500, device), "no VM");
        // They do not have the device any more.
        records.close_image(by_calls);
        records.free_images_of_vm(VmSlot(3));
        assert_eq!(without(), [false, true, true, true]);
    }

    #[test]
    fn the_next_agent_finds_the_devices_that_the_images_have() {
        let records = Records::in_memory();
        let key = |vm, device| ImageKey { vm, device, file: ImageKey::NO_FILE };
        records.claim_image(key(1, 7 << 20), Layer::Block).unwrap();
        records.claim_image(key(2, 8 << 20), Layer::Block).unwrap();
        // Users that were left without an image, and an image without a user.
        for vm in 10..15 {
            assert!(records.add_device_user(9 << 20, vm) && records.add_device_user(7 << 20, vm));
        }
        records.remove_device_user(8 << 20, 2);
        records.restore_device_users();
        let users = |device| users(&records, device);
        let of = [7 << 20, 8 << 20, 9 << 20].map(users);
        assert_eq!(of, [vec![VmSlot(1)], vec![VmSlot(2)], vec![]]);
    }
}

//! Whose request a bio is that the kernel submits in a worker of its own: a limit of a cgroup has delayed it (blk-throttle).

#![expect(unsafe_code, reason = "map memory is reached by raw pointers")]

use kvmeter_common::{DEVICE_USERS, DeviceUser, Event, EventKind, VmRecord};

use crate::{atomic, kernel, maps, memory::load, task::Task, thread::get};

/// Id of the cgroup to which a bio is accounted; 0: there is none.
#[inline(always)]
pub(crate) fn of_bio(bio: u64) -> u64 {
    if kernel::HAS_IO_CGROUPS.load() == 0 {
        return 0;
    }
    let cgroup = load!(u64, load!(u64, load!(u64, bio, BioGroup), GroupCgroup), IoCgroup);
    load!(u64, load!(u64, cgroup, CgroupNode), NodeId)
}

/// Slot of the VM that made a request which a thread of the kernel submits to this device. `None`: no VM, or one of several
/// with this cgroup and device.
#[inline(always)]
pub(crate) fn vm_of_delayed(bio: u64, device: u32) -> Option<u16> {
    if !Task::current().is_of_kernel() {
        return None;
    }
    let users = maps::device_users(device)?.cast::<u64>();
    let (mut found, mut count) = (0_u16, 0_u32);
    let mut cgroup = 0;
    for at in 0..DEVICE_USERS {
        // SAFETY: `at` is below the length of the array, a whole value of the map.
        let user = DeviceUser(unsafe { users.add(at).read_volatile() });
        if user.0 == 0 || user.device() != device {
            continue;
        }
        if cgroup == 0 {
            cgroup = of_bio(bio);
        }
        let vm = maps::vm(user.vm_slot())?;
        if cgroup == 0 || get!(vm, io_cgroup) != cgroup {
            continue;
        }
        count += 1;
        // Of several, each gets its event.
        if count == 1 || get!(vm, flags) & VmRecord::DELAYED == 0 {
            found = user.vm_slot();
        }
    }
    if count == 0 {
        return None;
    }
    report(found);
    if count > 1 {
        maps::count_uncounted();
        return None;
    }
    Some(found)
}

/// Sends [`EventKind::ImageDelayed`].
#[inline(always)]
fn report(vm_slot: u16) {
    let Some(vm) = maps::vm(vm_slot) else { return };
    if get!(vm, flags) & VmRecord::DELAYED != 0 {
        return;
    }
    // SAFETY: `vm` is a whole value of the map, and the field an aligned word of it.
    let flags = unsafe { atomic::fetch_or(&raw mut (*vm).flags, VmRecord::DELAYED) };
    if flags & VmRecord::DELAYED == 0 {
        #[expect(clippy::cast_possible_truncation, reason = "a process id has 32 bits")]
        let tgid = get!(vm, tgid) as u32;
        let kind = EventKind::ImageDelayed as u32;
        maps::send(&Event { kind, tgid, tid: 0, vm_slot: u32::from(vm_slot) });
    }
}

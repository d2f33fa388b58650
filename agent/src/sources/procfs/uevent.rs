//! Uevents of KVM (a VM was created or destroyed) and of CPU hotplug.
//!
//! `kvm_uevent_notify_change()` in the kernel's `virt/kvm/kvm_main.c` sends a uevent of the device `/dev/kvm` with
//! `EVENT=create` or `EVENT=destroy` and `PID=`, the id of the thread that created the VM. A socket filter drops all
//! uevents but these and those of CPUs, so that no other device wakes the agent.

use std::{io, os::fd::OwnedFd};

use rustix::net::{
    AddressFamily, RecvFlags, SocketFlags, SocketType, bind, netlink, netlink::SocketAddrNetlink,
    recv, socket_with,
};
use socket2::{SockFilter, SockRef};

const KVM: &[u8; 32] = b"change@/devices/virtual/misc/kvm";
const ONLINE: &[u8; 8] = b"online@/";
const OFFLINE: &[u8; 8] = b"offline@";

/// Multicast group of the kernel's own uevents; group 2 is udevd's.
const KERNEL_GROUP: u32 = 1;

// Classic BPF (linux/filter.h): load a word at a fixed offset, jump if equal, return.
const BPF_LD_W_ABS: u16 = 0x20;
const BPF_JMP_JEQ_K: u16 = 0x15;
const BPF_RET_K: u16 = 0x06;

/// A uevent that may change the inventory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Uevent {
    /// The thread with this id has created a VM.
    VmCreated(u32),
    /// A VM that the thread with this id created was destroyed.
    VmDestroyed(u32),
    /// The set of online CPUs has changed.
    Cpus,
}

/// Opens a non-blocking socket that receives the uevents of KVM and of CPUs.
pub(super) fn open() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        Some(netlink::KOBJECT_UEVENT),
    )?;
    SockRef::from(&socket).attach_filter(&filter())?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_GROUP))?;
    Ok(socket)
}

/// The next event; `None` = none is queued.
///
/// # Errors
///
/// `ENOBUFS` when events were lost.
pub(super) fn next(socket: &OwnedFd) -> io::Result<Option<Uevent>> {
    let mut buffer = [0; 4096];
    loop {
        match recv(socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((len, _)) => {
                if let Some(event) = parse(buffer.get(..len).unwrap_or(&buffer)) {
                    return Ok(Some(event));
                }
            }
            Err(rustix::io::Errno::AGAIN) => return Ok(None),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A classic BPF program that accepts messages beginning with [`KVM`], [`ONLINE`] or [`OFFLINE`].
fn filter() -> Vec<SockFilter> {
    let mut program = Vec::new();
    let alternatives: [&[u8]; 3] = [KVM, ONLINE, OFFLINE];
    for text in alternatives {
        let words: Vec<u32> = text
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        for (i, &word) in (0_u8..).zip(&words) {
            let rest = u8::try_from(words.len()).unwrap_or(u8::MAX) - i - 1;
            program.push(SockFilter::new(BPF_LD_W_ABS, 0, 0, u32::from(i) * 4));
            // On a mismatch: jump over the rest of this alternative and its return.
            program.push(SockFilter::new(BPF_JMP_JEQ_K, 0, rest * 2 + 1, word));
        }
        program.push(SockFilter::new(BPF_RET_K, 0, 0, u32::MAX));
    }
    program.push(SockFilter::new(BPF_RET_K, 0, 0, 0));
    program
}

fn parse(message: &[u8]) -> Option<Uevent> {
    let mut parts = message.split(|&byte| byte == 0);
    let header = parts.next()?;
    if header.starts_with(ONLINE) || header.starts_with(OFFLINE) {
        return header.windows(12).any(|part| part == b"/system/cpu/").then_some(Uevent::Cpus);
    }
    if header != KVM {
        return None;
    }
    let (mut event, mut pid) = (None, None);
    for part in parts {
        if let Some(value) = part.strip_prefix(b"EVENT=") {
            event = Some(value);
        } else if let Some(value) = part.strip_prefix(b"PID=") {
            pid = std::str::from_utf8(value).ok()?.parse().ok();
        }
    }
    match event? {
        b"create" => Some(Uevent::VmCreated(pid?)),
        b"destroy" => Some(Uevent::VmDestroyed(pid?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uevents_of_kvm_and_cpus_are_parsed() {
        let message = b"change@/devices/virtual/misc/kvm\0ACTION=change\0DEVPATH=/devices/virtual/misc/kvm\0\
            SUBSYSTEM=misc\0CREATED=1\0COUNT=1\0EVENT=create\0PID=9204\0STATS_PATH=/kvm/9204-5\0SEQNUM=820\0";
        assert_eq!(parse(message), Some(Uevent::VmCreated(9204)));
        assert_eq!(parse(b"online@/devices/system/cpu/cpu1\0ACTION=online\0"), Some(Uevent::Cpus));
        for other in [
            &b"add@/devices/virtual/net/veth0\0"[..],
            b"online@/devices/pnp0\0",
            b"",
            &message[..60],
        ] {
            assert_eq!(parse(other), None);
        }
    }

    #[test]
    fn every_jump_of_the_filter_lands_in_it() {
        // Two instructions per word, one return per alternative, and the final return.
        assert_eq!(filter().len(), (8 + 2 + 2) * 2 + 3 + 1);
    }
}

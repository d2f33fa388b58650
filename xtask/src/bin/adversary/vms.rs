//! VMs that are many, or have many descriptors.
#![expect(unsafe_code, reason = "the VM's descriptor is known by its number only")]

use std::{
    env,
    os::fd::{AsRawFd as _, BorrowedFd, OwnedFd},
    thread,
    time::Instant,
};

use kvm_ioctls::Kvm;

use super::{LIFE, files, wait};

/// Threads of a process that has many descriptors of its VM.
const THREADS: usize = 400;

/// Has a VM with a vCPU that does not run.
pub(crate) fn one() -> anyhow::Result<()> {
    let vm = Kvm::new()?.create_vm()?;
    let _vcpu = vm.create_vcpu(0)?;
    wait()
}

/// Has many descriptors of its VM, and many threads.
pub(crate) fn dups() -> anyhow::Result<()> {
    let count: usize = env::var("ATTACK_COUNT")?.parse()?;
    files::raise_descriptors(u64::try_from(count)? + 64)?;
    let vm = Kvm::new()?.create_vm()?;
    let _vcpu = vm.create_vcpu(0)?;
    // SAFETY: the descriptor is open as long as `vm` lives, which is to the end.
    let descriptor = unsafe { BorrowedFd::borrow_raw(vm.as_raw_fd()) };
    let copies: rustix::io::Result<Vec<OwnedFd>> =
        (0..count).map(|_| rustix::io::dup(descriptor)).collect();
    let _copies = copies?;
    let threads: Vec<_> = (0..THREADS).map(|_| thread::spawn(|| thread::sleep(LIFE))).collect();
    drop(threads);
    wait()
}

/// Makes and destroys VMs, one after the other.
pub(crate) fn flood() -> anyhow::Result<()> {
    let (kvm, start) = (Kvm::new()?, Instant::now());
    while start.elapsed() < LIFE {
        let vm = kvm.create_vm()?;
        drop(vm.create_vcpu(0)?);
    }
    Ok(())
}

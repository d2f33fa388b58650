//! The VM: memory, code and vCPUs.
#![expect(unsafe_code, reason = "KVM is given memory of this process by its address")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use kvm_bindings::{KVM_MP_STATE_RUNNABLE, kvm_mp_state, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use memmap2::MmapMut;
use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use crate::duty::Duty;

/// Where the code of each duty lies in guest memory.
const BUSY: u64 = 0x1000;
const HALF: u64 = 0x2000;
const IDLE: u64 = 0x3000;

const CODE: [(u64, &[u8]); 3] = [
    // jmp $
    (BUSY, &[0xeb, 0xfe]),
    // again: mov ecx, 200000; spin: dec ecx; jnz spin; out 0x10, al; jmp again
    (HALF, &[0x66, 0xb9, 0x40, 0x0d, 0x03, 0x00, 0x66, 0x49, 0x75, 0xfc, 0xe6, 0x10, 0xeb, 0xf2]),
    // again: hlt; jmp again
    (IDLE, &[0xf4, 0xeb, 0xfd]),
];

/// A VM that runs.
pub(crate) struct Machine {
    vm: VmFd,
    _memory: MmapMut,
    vcpus: Vec<Vcpu>,
    /// KVM never forgets a vCPU; its descriptor is kept for when one is plugged in again, as QEMU does.
    parked: Vec<VcpuFd>,
    are_named: bool,
}

struct Vcpu {
    tid: u32,
    end: Arc<AtomicBool>,
    thread: JoinHandle<VcpuFd>,
}

impl Machine {
    pub(crate) fn new(memory: usize, are_named: bool) -> anyhow::Result<Self> {
        let kvm = Kvm::new().context(
            "/dev/kvm cannot be opened; load kvm_intel or kvm_amd, and run this as root or in the group kvm",
        )?;
        let vm = kvm.create_vm().context("KVM makes no VM")?;
        // With KVM's own interrupt controller a halted vCPU sleeps in the kernel.
        vm.create_irq_chip().context("KVM makes no interrupt controller")?;
        let mut mapping = MmapMut::map_anon(memory).context("no memory for the guest")?;
        for (at, code) in CODE {
            let at = usize::try_from(at)?;
            let Some(place) = mapping.get_mut(at..at + code.len()) else {
                bail!("the guest needs a MiB of memory at least")
            };
            place.copy_from_slice(code);
        }
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: u64::try_from(memory)?,
            userspace_addr: u64::try_from(mapping.as_ptr().addr())?,
        };
        // SAFETY: the region is the whole of `mapping`, which is kept for as long as the VM; nobody else
        // reads or writes it after this.
        unsafe { vm.set_user_memory_region(region) }.context("KVM refuses the guest's memory")?;
        // The signal that brings a vCPU's thread out of the guest. What matters is the interrupted call.
        register_signal_handler(SIGRTMIN(), on_signal)
            .context("no handler for the signal that ends a vCPU")?;
        Ok(Self { vm, _memory: mapping, vcpus: Vec::new(), parked: Vec::new(), are_named })
    }

    pub(crate) fn tids(&self) -> impl Iterator<Item = u32> {
        self.vcpus.iter().map(|vcpu| vcpu.tid)
    }

    pub(crate) fn add_vcpu(&mut self, duty: Duty) -> anyhow::Result<()> {
        let id = self.vcpus.len();
        let mut fd = match self.parked.pop() {
            Some(fd) => fd,
            None => self
                .vm
                .create_vcpu(u64::try_from(id)?)
                .with_context(|| format!("KVM makes no vCPU {id}"))?,
        };
        begin(&mut fd, duty).with_context(|| format!("vCPU {id} cannot be set up"))?;
        let end = Arc::new(AtomicBool::new(false));
        let (tell, told) = mpsc::channel();
        let mut builder = thread::Builder::new();
        if self.are_named {
            builder = builder.name(format!("vcpu{id}"));
        }
        let thread = builder.spawn({
            let end = Arc::clone(&end);
            move || {
                // The receiver waits below.
                let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get());
                run(&mut fd, &end);
                fd
            }
        })?;
        let tid = told.recv().context("the vCPU's thread has ended")?.unsigned_abs();
        self.vcpus.push(Vcpu { tid, end, thread });
        Ok(())
    }

    pub(crate) fn remove_vcpu(&mut self) -> anyhow::Result<()> {
        let vcpu = self.vcpus.pop().context("there is no vCPU left")?;
        vcpu.end.store(true, Ordering::Release);
        // A signal that comes just before the thread enters the guest is lost on it, so there are more.
        while !vcpu.thread.is_finished() {
            vcpu.thread.kill(SIGRTMIN()).context("the vCPU's thread takes no signal")?;
            thread::sleep(Duration::from_millis(1));
        }
        if let Ok(fd) = vcpu.thread.join() {
            self.parked.push(fd);
        }
        Ok(())
    }
}

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn begin(fd: &mut VcpuFd, duty: Duty) -> anyhow::Result<()> {
    let mut sregs = fd.get_sregs()?;
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    fd.set_sregs(&sregs)?;
    let mut regs = fd.get_regs()?;
    regs.rip = match duty {
        Duty::Busy => BUSY,
        Duty::Half => HALF,
        Duty::Idle => IDLE,
    };
    // Bit 1 is always set; interrupts are off.
    regs.rflags = 2;
    fd.set_regs(&regs)?;
    // All but the first vCPU wait for another one to start them.
    Ok(fd.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?)
}

fn run(fd: &mut VcpuFd, end: &AtomicBool) {
    let mut entered = Instant::now();
    while !end.load(Ordering::Acquire) {
        match fd.run() {
            Ok(VcpuExit::IoOut(..)) => {
                thread::sleep(entered.elapsed());
                entered = Instant::now();
            }
            Ok(VcpuExit::Hlt | VcpuExit::Intr) => {}
            Ok(exit) => {
                eprintln!("A vCPU ends for {exit:?}");
                return;
            }
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {}
            Err(error) => {
                eprintln!("A vCPU ends: {error}");
                return;
            }
        }
    }
}

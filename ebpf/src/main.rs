//! The BPF object: all programs of the library, a licence and a panic handler. On the host it is an empty program.

#![cfg_attr(
    target_arch = "bpf",
    no_std,
    no_main,
    expect(unsafe_code, reason = "the loader finds the licence by the name of its section")
)]

use kvmeter_ebpf as _;

/// Licence of the programs; the kernel allows GPL-only helpers by it.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

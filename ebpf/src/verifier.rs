//! Code in the shape that the verifier accepts, where LLVM would choose another one.

#![cfg_attr(
    target_arch = "bpf",
    expect(unsafe_code, reason = "only assembly keeps LLVM from seeing through a value")
)]

/// The low half of a kernel address, as a number.
///
/// The verifier allows no multiplication of a pointer; a 32-bit move yields a scalar.
#[inline(always)]
pub(crate) fn low_half(address: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    let low = address as u32;
    #[cfg(target_arch = "bpf")]
    {
        let scalar: u32;
        // SAFETY: the instruction moves one register to another.
        unsafe {
            core::arch::asm!(
                "{scalar} = {low}",
                scalar = out(wreg) scalar,
                low = in(wreg) low,
                options(pure, nomem, nostack),
            );
        }
        scalar
    }
    #[cfg(not(target_arch = "bpf"))]
    low
}

/// The same number, without what LLVM has proved about it.
///
/// LLVM drops a bounds check that it can prove to succeed; the verifier needs to see the check.
#[inline(always)]
pub(crate) fn forget_bounds(number: usize) -> usize {
    #[cfg(target_arch = "bpf")]
    {
        let mut forgotten = number;
        // SAFETY: the template is a comment: no instruction.
        unsafe {
            core::arch::asm!("/* {0} */", inout(reg) forgotten, options(pure, nomem, nostack));
        }
        forgotten
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(number)
}

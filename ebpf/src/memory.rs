//! Reads of the kernel's memory: direct loads where the verifier knows a pointer's type, a helper elsewhere.

#![expect(unsafe_code, reason = "the kernel's memory is reached by raw pointers")]

use core::ptr;

use aya_ebpf::helpers::bpf_probe_read_kernel;
use kvmeter_common::Field;

use crate::kernel;

/// A number of the kernel's.
///
/// # Safety
///
/// Any bytes are a value of the type.
pub(crate) unsafe trait Number: Copy {
    /// Loads a number at `from` plus the offset that the agent puts in the place of `PLACEHOLDER`. See [`load!`].
    fn load<const PLACEHOLDER: i16>(from: u64) -> Self;
}

macro_rules! number {
    ($type:ident $(, $lint:path)?) => {
        // SAFETY: every bit pattern is an unsigned integer.
        unsafe impl Number for $type {
            /// In assembly, so that LLVM neither folds the offset nor caches the value.
            #[cfg(target_arch = "bpf")]
            #[inline(always)]
            fn load<const PLACEHOLDER: i16>(from: u64) -> Self {
                let value: u64;
                // SAFETY: the instruction is a load, which has no effect but its value. The verifier accepts it only
                // where it knows `from` as a pointer to a kernel type with a field of this size at the offset (or as
                // memory of the program itself), and makes it a load that yields 0 instead of a fault.
                unsafe {
                    core::arch::asm!(
                        concat!("{value} = *(", stringify!($type), " *)({from} + {placeholder})"),
                        value = out(reg) value,
                        from = in(reg) from,
                        placeholder = const PLACEHOLDER,
                        options(nostack, readonly),
                    );
                }
                $(#[expect($lint, reason = "the load has cleared the bits above the number")])?
                let number = value as Self;
                number
            }

            #[cfg(not(target_arch = "bpf"))]
            fn load<const PLACEHOLDER: i16>(_: u64) -> Self {
                unreachable!("BPF programs run in the kernel only")
            }
        }
    };
}
number!(u8, clippy::cast_possible_truncation);
number!(u16, clippy::cast_possible_truncation);
number!(u32, clippy::cast_possible_truncation);
number!(u64);

/// Loads a field through its placeholder offset: `load!(u32, task, TaskPid)`. The first word is the field's type, the
/// second a pointer whose type the verifier knows.
macro_rules! load {
    ($type:ident, $from:expr, $field:ident) => {
        <$type as $crate::memory::Number>::load::<{ kvmeter_common::Field::$field.placeholder() }>(
            $from,
        )
    };
}
pub(crate) use load;

/// Reads `field` of the struct at `from`, a pointer whose type the verifier does not know.
#[inline(always)]
pub(crate) fn copy<T: Number>(from: u64, field: Field) -> Option<T> {
    copy_at(from.wrapping_add(kernel::offset(field)))
}

/// Reads a number at any kernel address. `None`: nothing is mapped there.
#[inline(always)]
pub(crate) fn copy_at<T: Number>(address: u64) -> Option<T> {
    let from = ptr::with_exposed_provenance::<T>(usize::try_from(address).ok()?);
    // SAFETY: the helper reads any address or fails, and any bytes are a `Number`.
    unsafe { bpf_probe_read_kernel(from) }.ok()
}

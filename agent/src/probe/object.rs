//! The BPF object in this binary.

use super::ProbeError;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/kvmeter.bpf.o"));

/// The ELF object.
///
/// # Errors
///
/// [`ProbeError::BuiltWithout`] where the build had no BPF toolchain.
pub(super) fn elf() -> Result<&'static [u8], ProbeError> {
    if OBJECT.is_empty() { Err(ProbeError::BuiltWithout) } else { Ok(OBJECT) }
}

//! Which vCPU a thread runs, and where the counts of that vCPU's earlier threads are.

/// Number of a vCPU in bits 0 to 15, and above the slot of the record that keeps the counts of the vCPU's earlier threads, 0 = none:
/// a vCPU that is unplugged and plugged in again has another thread. One word, so that both change at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct Vcpu(pub u32);

impl Vcpu {
    /// A vCPU that no row shows: nothing is kept of its threads.
    pub const UNNUMBERED: Self = Self(u16::MAX as u32);

    /// The vCPU with this number, whose earlier threads have their counts in the record `earlier`.
    #[inline(always)]
    #[must_use]
    pub const fn new(number: u16, earlier: u16) -> Self {
        Self(number as u32 | (earlier as u32) << 16)
    }

    /// The VMM's number of the vCPU.
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the number is bits 0 to 15")]
    pub const fn number(self) -> u16 {
        self.0 as u16
    }

    /// Slot of the record with the counts of earlier threads; 0 = there is none.
    #[inline(always)]
    #[must_use]
    pub const fn earlier(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Whether the counts of a thread are kept when it ends.
    #[inline(always)]
    #[must_use]
    pub const fn is_numbered(self) -> bool {
        self.number() != Self::UNNUMBERED.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_gives_back_its_parts() {
        let vcpu = Vcpu::new(4095, 65_528);
        assert_eq!((vcpu.number(), vcpu.earlier(), vcpu.is_numbered()), (4095, 65_528, true));
        assert!(!Vcpu::UNNUMBERED.is_numbered() && Vcpu::UNNUMBERED.earlier() == 0);
    }
}

//! Where the thread of a vCPU is.

/// Where a vCPU's thread is, in bits 0 and 1, and how often it has come into `KVM_RUN`, above, modulo 2^30. The kernel's side
/// writes it; the agent only where it is 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(transparent)]
pub struct Place(pub u32);

impl Place {
    /// Not seen yet.
    pub const UNKNOWN: u32 = 0;
    /// Inside `KVM_RUN` when it left its CPU last.
    pub const IN_KVM_RUN: u32 = 1;
    /// Asleep outside `KVM_RUN`: it waits for a condition, or is stopped. With [`HALTS_OUTSIDE`](crate::Owner::HALTS_OUTSIDE) it is
    /// stopped.
    pub const ASLEEP: u32 = 2;
    /// It has had a CPU since it was asleep outside `KVM_RUN`.
    pub const AWAKE: u32 = 3;

    const BITS: u32 = 3;

    /// Whether it is this place.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, place: u32) -> bool {
        self.0 & Self::BITS == place
    }

    /// The thread is at another place.
    #[inline(always)]
    #[must_use]
    pub const fn at(self, place: u32) -> Self {
        Self(self.0 & !Self::BITS | place)
    }

    /// The thread has come into `KVM_RUN`.
    #[inline(always)]
    #[must_use]
    pub const fn enter(self) -> Self {
        Self(self.0.wrapping_add(Self::BITS + 1)).at(Self::IN_KVM_RUN)
    }

    /// How often it has come into `KVM_RUN`, modulo 2^30.
    #[inline(always)]
    #[must_use]
    pub const fn entries(self) -> u32 {
        self.0 >> 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_keeps_the_entries() {
        let place = Place::default().enter().at(Place::ASLEEP).at(Place::AWAKE).enter();
        assert!(place.is(Place::IN_KVM_RUN) && place.entries() == 2);
        let last = Place(u32::MAX);
        assert!(last.is(Place::AWAKE) && last.enter() == Place(Place::IN_KVM_RUN));
    }
}

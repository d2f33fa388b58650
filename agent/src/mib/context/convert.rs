//! From the host's units and widths to SNMP's. Each name says whether a value that does not fit wraps,
//! saturates or is cut.

/// TimeTicks of a time in ns. Wraps after 497 days, as RFC 2578 section 7.1.8 has it: managers
/// expect it.
#[must_use]
pub fn time_ticks_wrapping(ns: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "modulo 2^32 is what TimeTicks are")]
    {
        (ns / 10_000_000) as u32
    }
}

/// Microseconds of a time in ns, rounded down. Every value fits a Counter64.
#[must_use]
pub const fn microseconds(ns: u64) -> u64 {
    ns / 1000
}

/// A number as Integer32. Saturates at 2^31 - 1: a wrapped number would be negative.
#[must_use]
pub fn integer32_saturating(number: impl TryInto<i32>) -> i32 {
    number.try_into().unwrap_or(i32::MAX)
}

/// A limit as Integer32: -1 for none, else saturating.
#[must_use]
pub fn limit_saturating(limit: Option<u32>) -> i32 {
    limit.map_or(NO_LIMIT, integer32_saturating)
}

/// What the columns that have limits say where there is none.
const NO_LIMIT: i32 = -1;

/// An ifIndex as InterfaceIndexOrZero: 0 for none, else saturating.
#[must_use]
pub fn index_or_zero_saturating(if_index: Option<u32>) -> i32 {
    if_index.map_or(0, integer32_saturating)
}

/// Text as SnmpAdminString (SIZE (0..255)): cut to the most whole characters that fit into 255 octets.
#[must_use]
pub fn admin_string_cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(255)]
}

/// vmMemUnit or vmStorageSizeUnit: the unit of the columns beside it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SizeUnit(u32);

impl SizeUnit {
    /// The powers of 1024 that are Integer32 themselves.
    const UNITS: [u32; 3] = [1 << 10, 1 << 20, 1 << 30];

    /// The smallest unit with which `largest` bytes fit Integer32; the largest unit where none does
    /// (from 2 EiB on), and then the value saturates.
    #[must_use]
    pub fn for_largest(largest: u64) -> Self {
        let fits = |unit: &u32| i32::try_from(largest / u64::from(*unit)).is_ok();
        Self(Self::UNITS.into_iter().find(fits).unwrap_or(1 << 30))
    }

    /// The unit that columns of one row share, for those of their sizes that are known.
    #[must_use]
    pub fn shared_by(sizes: &[Option<u64>]) -> Self {
        Self::for_largest(sizes.iter().copied().flatten().max().unwrap_or(0))
    }

    /// The unit itself in bytes.
    #[must_use]
    pub fn bytes(self) -> i32 {
        integer32_saturating(self.0)
    }

    /// A size in bytes, in this unit, rounded down, saturating.
    #[must_use]
    pub fn count_saturating(self, bytes: u64) -> i32 {
        integer32_saturating(bytes / u64::from(self.0))
    }

    /// A limit in bytes, in this unit: -1 for none, else saturating.
    #[must_use]
    pub fn limit_saturating(self, bytes: Option<u64>) -> i32 {
        bytes.map_or(NO_LIMIT, |bytes| self.count_saturating(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_ticks_round_down_and_wrap_at_497_days() {
        assert_eq!(time_ticks_wrapping(9_999_999), 0);
        assert_eq!(time_ticks_wrapping(10_000_000), 1);
        assert_eq!(time_ticks_wrapping((1 << 32) * 10_000_000 - 1), u32::MAX);
        assert_eq!(time_ticks_wrapping((1 << 32) * 10_000_000), 0);
        assert_eq!(microseconds(1999), 1);
        assert_eq!(microseconds(u64::MAX), u64::MAX / 1000);
    }

    #[test]
    fn numbers_saturate_and_no_limit_is_minus_one() {
        assert_eq!(integer32_saturating(2_147_483_647_u32), i32::MAX);
        assert_eq!(integer32_saturating(2_147_483_648_u32), i32::MAX);
        assert_eq!(integer32_saturating(usize::MAX), i32::MAX);
        assert_eq!(limit_saturating(None), -1);
        assert_eq!(limit_saturating(Some(u32::MAX)), i32::MAX);
        assert_eq!(index_or_zero_saturating(None), 0);
        assert_eq!(index_or_zero_saturating(Some(u32::MAX)), i32::MAX);
    }

    #[test]
    fn strings_are_cut_between_characters() {
        assert_eq!(admin_string_cut(&"a".repeat(255)).len(), 255);
        assert_eq!(admin_string_cut(&"a".repeat(256)).len(), 255);
        // 127 characters of 2 octets are 254; the next one would straddle the limit.
        assert_eq!(admin_string_cut(&"é".repeat(200)).len(), 254);
        assert_eq!(admin_string_cut(&"😀".repeat(64)).len(), 252);
        assert_eq!(admin_string_cut(""), b"");
    }

    #[test]
    fn the_unit_grows_when_the_largest_size_no_longer_fits() {
        let last_kib = 1024 * 2_147_483_648 - 1;
        for (largest, unit) in [
            (0, 1 << 10),
            (last_kib, 1 << 10),
            (last_kib + 1, 1 << 20),
            (1024 * (last_kib + 1) - 1, 1 << 20),
            (1024 * (last_kib + 1), 1 << 30),
            (u64::MAX, 1 << 30),
        ] {
            assert_eq!(SizeUnit::for_largest(largest).bytes(), unit, "{largest}");
        }
        assert_eq!(SizeUnit::for_largest(u64::MAX).count_saturating(u64::MAX), i32::MAX);
    }

    #[test]
    fn columns_share_the_unit_that_the_largest_needs() {
        let largest = Some(4 << 40);
        let unit = SizeUnit::shared_by(&[Some(1 << 30), None, largest]);
        assert_eq!(unit.bytes(), 1 << 20);
        assert_eq!(unit.count_saturating(1 << 30), 1024);
        assert_eq!(unit.limit_saturating(largest), 4 << 20);
        assert_eq!(unit.limit_saturating(None), -1);
        assert_eq!(SizeUnit::shared_by(&[None, None]).bytes(), 1 << 10);
    }
}

//! A stopwatch in one 64-bit word.
//!
//! A running stopwatch is `(sum - now) << 1 | 1`, a stopped one `sum << 1`. Reading it takes one load and the current
//! time: `(word >> 1) + (running ? now : 0)`. So a vCPU that never leaves its CPU still counts to the nanosecond, and
//! reader and writer need no lock. Times are in nanoseconds and wrap at 2^63, 292 years.
//!
//! The word 0 is [`UNKNOWN`].

/// The record has seen no event yet.
pub const UNKNOWN: u64 = 0;

/// A stopped stopwatch that shows `sum` ns.
#[inline(always)]
#[must_use]
pub const fn at_rest(sum: u64) -> u64 {
    sum << 1
}

/// A running stopwatch that shows `sum` ns at the time `now`.
#[inline(always)]
#[must_use]
pub const fn running(sum: u64, now: u64) -> u64 {
    (sum.wrapping_sub(now) << 1) | 1
}

/// Whether the stopwatch is running.
#[inline(always)]
#[must_use]
pub const fn is_running(word: u64) -> bool {
    word & 1 == 1
}

/// The sum at the time `now`, in ns modulo 2^63.
#[inline(always)]
#[must_use]
pub const fn shows(word: u64, now: u64) -> u64 {
    if is_running(word) {
        // The shift loses the sign of a negative `sum - now`; modulo 2^63 the sum is right again.
        ((word >> 1).wrapping_add(now)) & (u64::MAX >> 1)
    } else {
        word >> 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_word_shows_its_sum_at_any_time() {
        for now in [0, 1, u64::MAX >> 1] {
            assert_eq!(shows(at_rest(12_345), now), 12_345);
        }
    }

    #[test]
    fn a_running_word_adds_the_time_since() {
        let start = 1 << 40;
        let word = running(7, start);
        assert!(is_running(word));
        assert_eq!(shows(word, start), 7);
        assert_eq!(shows(word, start + 100), 107);
    }

    #[test]
    fn a_sum_larger_than_the_time_since_boot_survives() {
        let word = running(u64::MAX >> 2, 5);
        assert_eq!(shows(word, 6), (u64::MAX >> 2) + 1);
    }
}

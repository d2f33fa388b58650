//! A histogram of latencies and its quantiles, with the buckets of [`kvmeter_common::image`]: four to each doubling, from
//! 1 µs to 17 s. The BPF programs and the agent's own statistics use the same buckets.

use kvmeter_common::image::{LATENCY_BUCKETS, bucket_start};

/// End in ns of the last bucket, which has longer latencies, too: 17 s.
const END_NS: u64 = 1 << 34;

/// Number of latencies in each bucket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Histogram([u64; LATENCY_BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([0; LATENCY_BUCKETS])
    }
}

impl Histogram {
    /// Adds the counts of another histogram with the same buckets.
    pub fn add(&mut self, counts: impl Iterator<Item = u64>) {
        for (sum, count) in self.0.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count);
        }
    }

    /// Number of latencies in all buckets.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The quantile of `per_mille` in ns: 500 is the median, 990 the 99th percentile. It is the middle of its bucket, so at
    /// most an eighth off. 0 if the histogram is empty.
    #[must_use]
    pub fn quantile(&self, per_mille: u16) -> u64 {
        let rank = u128::from(self.count()) * u128::from(per_mille.min(1000));
        let mut seen = 0;
        for (bucket, count) in self.0.iter().enumerate() {
            seen += u128::from(*count) * 1000;
            if seen > 0 && seen >= rank {
                return middle_of(bucket);
            }
        }
        0
    }
}

/// Middle of a bucket in ns.
fn middle_of(bucket: usize) -> u64 {
    let end = if bucket + 1 < LATENCY_BUCKETS { bucket_start(bucket + 1) } else { END_NS };
    u64::midpoint(bucket_start(bucket), end)
}

#[cfg(test)]
mod tests {
    use kvmeter_common::image::bucket_of;

    use super::*;

    fn of(latencies: impl Iterator<Item = u64>) -> Histogram {
        let mut histogram = Histogram::default();
        for ns in latencies {
            let bucket = bucket_of(ns);
            histogram.add((0..LATENCY_BUCKETS).map(|other| u64::from(other == bucket)));
        }
        histogram
    }

    #[test]
    fn quantiles_are_within_an_eighth() {
        let histogram = of((1..=1000).map(|us| us * 1000));
        assert_eq!(histogram.count(), 1000);
        for (per_mille, exact) in [(500, 500_000), (900, 900_000), (999, 999_000)] {
            let quantile = histogram.quantile(per_mille);
            assert!(quantile.abs_diff(exact) <= exact / 8, "{quantile} is not {exact}");
        }
    }

    #[test]
    fn the_last_bucket_is_as_wide_as_its_neighbours() {
        let histogram = of([16_000_000_000].into_iter());
        assert!(histogram.quantile(500).abs_diff(16_000_000_000) <= 2_000_000_000);
    }

    #[test]
    fn the_extremes_are_the_first_and_the_last_bucket_in_use() {
        assert_eq!(Histogram::default().quantile(500), 0);
        let histogram = of([3_000, 5_000_000, u64::MAX].into_iter());
        assert_eq!(histogram.quantile(0), middle_of(bucket_of(3_000)));
        assert_eq!(histogram.quantile(1000), middle_of(LATENCY_BUCKETS - 1));
        assert_eq!(histogram.quantile(u16::MAX), histogram.quantile(1000));
        let mut full = Histogram::default();
        full.add([u64::MAX; LATENCY_BUCKETS].into_iter());
        assert_eq!(full.count(), u64::MAX);
    }
}

//! I/O of virtual disks, as numbers that only grow.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The I/O of one disk since its VM started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskIo {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Octets that were read.
    pub read_octets: u64,
    /// Octets that were written.
    pub write_octets: u64,
    /// Time between the beginning and the end of each read request in ns, summed.
    pub read_ns: u64,
    /// The same of write requests.
    pub write_ns: u64,
}

/// The I/O of a disk that somebody else counts: one follows what is seen, and others read at any time. A clone is
/// the same disk.
#[derive(Clone, Debug, Default)]
pub struct DiskTotals(Arc<[Total; 6]>);

#[derive(Debug, Default)]
struct Total {
    given: AtomicU64,
    seen: AtomicU64,
}

impl DiskTotals {
    /// Takes in what is counted now. A count that is less than before has begun anew at 0, as that of a disk does
    /// that was plugged out and in again; what is given out goes on. Only one thread may do this at a time.
    pub fn observe(&self, now: DiskIo) {
        let DiskIo { reads, writes, read_octets, write_octets, read_ns, write_ns } = now;
        let now = [reads, writes, read_octets, write_octets, read_ns, write_ns];
        for (total, now) in self.0.iter().zip(now) {
            let before = total.seen.swap(now, Relaxed);
            total.given.fetch_add(now.checked_sub(before).unwrap_or(now), Relaxed);
        }
    }

    /// The sums. Each is never less than it was before; one may be newer than another.
    #[must_use]
    pub fn read(&self) -> DiskIo {
        let [reads, writes, read_octets, write_octets, read_ns, write_ns] =
            self.0.each_ref().map(|total| total.given.load(Relaxed));
        DiskIo { reads, writes, read_octets, write_octets, read_ns, write_ns }
    }
}

/// Whether it is the same disk.
impl PartialEq for DiskTotals {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for DiskTotals {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_begins_anew_goes_on() {
        let totals = DiskTotals::default();
        let io = |reads, write_ns| DiskIo { reads, write_ns, ..DiskIo::default() };
        for (seen, given) in [
            (io(3, 10), io(3, 10)),
            (io(3, 10), io(3, 10)),
            (io(5, 11), io(5, 11)),
            (io(2, 1), io(7, 12)),
            (io(4, 1), io(9, 12)),
        ] {
            totals.observe(seen);
            assert_eq!(totals.read(), given);
        }
        assert_eq!(totals, totals.clone());
        assert_ne!(totals, DiskTotals::default());
    }
}

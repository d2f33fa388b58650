//! Numbers about virtual disks.

/// The I/O of one disk since its VM started.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskIo {
    /// Read requests.
    pub reads: u64,
    /// Write requests.
    pub writes: u64,
    /// Bytes that were read.
    pub read_octets: u64,
    /// Bytes that were written.
    pub write_octets: u64,
    /// Time between the beginning and the end of each read request in ns, summed.
    pub read_ns: u64,
    /// The same of write requests.
    pub write_ns: u64,
}

/// The sizes of a disk in bytes; `None` = not known.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DiskSize {
    /// vmStorageDefinedSize: what the guest sees.
    pub defined: Option<u64>,
    /// vmStorageAllocatedSize: what it takes on the host.
    pub allocated: Option<u64>,
}

/// Sums of counts that may begin at 0 again while the VM runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DiskTotals {
    sums: [u64; 6],
    seen: [u64; 6],
}

impl DiskTotals {
    /// Takes in what is counted now. A count below the one before has begun at 0 again, as that of a disk does that was
    /// unplugged and plugged in; the sum goes on.
    pub(super) fn observe(&mut self, now: DiskIo) {
        let DiskIo { reads, writes, read_octets, write_octets, read_ns, write_ns } = now;
        let now = [reads, writes, read_octets, write_octets, read_ns, write_ns];
        for ((sum, seen), now) in self.sums.iter_mut().zip(&mut self.seen).zip(now) {
            let before = std::mem::replace(seen, now);
            *sum = sum.saturating_add(now.checked_sub(before).unwrap_or(now));
        }
    }

    /// The sums. Each is never less than before.
    pub(super) const fn sums(&self) -> DiskIo {
        let [reads, writes, read_octets, write_octets, read_ns, write_ns] = self.sums;
        DiskIo { reads, writes, read_octets, write_octets, read_ns, write_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_begins_again_goes_on() {
        let mut totals = DiskTotals::default();
        let io = |reads, write_ns| DiskIo { reads, write_ns, ..DiskIo::default() };
        for (seen, sums) in [
            (io(3, 10), io(3, 10)),
            (io(3, 10), io(3, 10)),
            (io(5, 11), io(5, 11)),
            (io(2, 1), io(7, 12)),
            (io(4, 1), io(9, 12)),
        ] {
            totals.observe(seen);
            assert_eq!(totals.sums(), sums);
        }
    }
}

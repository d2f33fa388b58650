//! The ring of events from the programs.

use std::{
    fmt,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd},
};

use aya::maps::{MapData, RingBuf};
use kvmeter_common::Event;

/// Consumer of the ring. The descriptor is readable while an event is pending.
pub struct Events(RingBuf<MapData>);

impl Events {
    pub(super) const fn new(ring: RingBuf<MapData>) -> Self {
        Self(ring)
    }

    /// Takes the oldest pending event; `None`: the ring is empty.
    pub fn oldest(&mut self) -> Option<Event> {
        loop {
            let entry = self.0.next()?;
            // Skips entries of another length, which programs of another version write.
            if let Some(event) = parse(&entry) {
                return Some(event);
            }
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0.as_raw_fd()).finish()
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn parse(entry: &[u8]) -> Option<Event> {
    let mut words = entry.chunks_exact(4).filter_map(|word| Some(ne_u32(word.try_into().ok()?)));
    let (Some(kind), Some(tgid), Some(tid), Some(vm_slot), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return None;
    };
    Some(Event { kind, tgid, tid, vm_slot })
}

#[expect(clippy::host_endian_bytes, reason = "the programs run on this host")]
const fn ne_u32(word: [u8; 4]) -> u32 {
    u32::from_ne_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_another_length_are_no_events() {
        let entry: Vec<u8> = [1_u8, 2, 3, 4].iter().flat_map(|&n| [n; 4]).collect();
        let event = parse(&entry).unwrap();
        assert_eq!((event.kind, event.vm_slot), (0x0101_0101, 0x0404_0404));
        assert_eq!(parse(&entry[..12]), None);
        assert_eq!(parse(&[0; 20]), None);
    }
}

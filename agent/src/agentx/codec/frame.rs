//! Where one PDU ends and the next begins in a stream of octets (RFC 2741 section 8).

use thiserror::Error;

use super::header::Header;

/// The most octets of a payload, in either direction. An SNMP message over UDP has at most 65,507 octets,
/// and AgentX spends four or five octets on what takes one in BER; twice, for the two ends of a range. So no
/// manager can make a master send more.
pub const MAX_PAYLOAD: usize = 512 * 1024;

/// One whole PDU. Its payload has not been looked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// As many octets as the header says.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Octets of the PDU with its header.
    #[must_use]
    pub fn len(&self) -> usize {
        Header::LEN + self.payload.len()
    }

    /// Never: there is always a header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// The length in a header cannot be, so that nobody knows where the next PDU begins: the connection is lost.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "The master sent a PDU with a payload of {} octets; it must be a multiple of 4, and at most {MAX_PAYLOAD}",
    header.payload_length
)]
pub struct FrameError {
    /// The header with that length.
    pub header: Header,
}

/// The PDU at the beginning of `octets`; `None` when it has not all come yet.
///
/// # Errors
///
/// [`FrameError`] as soon as the header is there: no octet of such a payload needs to be kept.
pub fn split(octets: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let Some((header, rest)) = octets.split_first_chunk() else {
        return Ok(None);
    };
    let header = Header::decode(header);
    match usize::try_from(header.payload_length) {
        Ok(len) if len <= MAX_PAYLOAD && len % 4 == 0 => {
            Ok(rest.get(..len).map(|payload| Frame { header, payload }))
        }
        _ => Err(FrameError { header }),
    }
}

/// Octets that came and have not been handled, with what is still missing of the last PDU.
#[derive(Debug, Default)]
pub struct Inbox {
    octets: Vec<u8>,
    handled: usize,
}

impl Inbox {
    /// Room that is kept ready, and to which the memory goes back after a large PDU.
    const READ_AHEAD: usize = 16 * 1024;

    /// The buffer to append octets to, with room for some.
    pub fn fill(&mut self) -> &mut Vec<u8> {
        self.octets.drain(..self.handled);
        self.handled = 0;
        if self.octets.is_empty() {
            self.octets.shrink_to(Self::READ_AHEAD);
        }
        self.octets.reserve(Self::READ_AHEAD / 4);
        &mut self.octets
    }

    /// The next PDU, if it is whole. Each is given once.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; the octets from there on are of no use.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let frame = split(&self.octets[self.handled..])?;
        self.handled += frame.as_ref().map_or(0, Frame::len);
        Ok(frame)
    }

    /// Forgets everything: the connection is another one.
    pub fn clear(&mut self) {
        self.octets.clear();
        self.handled = 0;
    }

    /// Octets that wait to be handled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.octets.len() - self.handled
    }

    /// Whether none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{ByteOrder, PduType},
        *,
    };

    fn header(payload_length: u32) -> Header {
        Header { payload_length, ..Header::new(PduType::Get, ByteOrder::Network) }
    }

    #[test]
    fn octets_may_come_one_by_one() {
        let mut octets = header(8).encode().to_vec();
        octets.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        octets.extend(header(0).encode());
        let mut inbox = Inbox::default();
        let mut ends = Vec::new();
        for (at, octet) in octets.iter().enumerate() {
            inbox.fill().push(*octet);
            if let Some(frame) = inbox.next_frame().unwrap() {
                ends.push((at + 1, frame.payload.len()));
            }
        }
        assert_eq!(ends, [(28, 8), (48, 0)]);
        assert!(inbox.is_empty());
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_before_its_payload_comes() {
        let largest = u32::try_from(MAX_PAYLOAD).unwrap();
        assert_eq!(split(&header(largest).encode()), Ok(None));
        for wrong in [1, 2, 3, largest + 4, u32::MAX, u32::MAX - 3] {
            let header = header(wrong);
            assert_eq!(split(&header.encode()), Err(FrameError { header }));
        }
    }

    #[test]
    fn memory_of_a_large_pdu_is_given_back() {
        let mut inbox = Inbox::default();
        let large = header(u32::try_from(MAX_PAYLOAD).unwrap());
        inbox.fill().extend(large.encode());
        inbox.fill().resize(Header::LEN + MAX_PAYLOAD, 0);
        assert_eq!(inbox.next_frame().unwrap().unwrap().payload.len(), MAX_PAYLOAD);
        assert!(inbox.fill().capacity() <= 2 * Inbox::READ_AHEAD);
    }
}

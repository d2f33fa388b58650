//! Framing: splits a stream of bytes into PDUs (RFC 2741 section 8).

use thiserror::Error;

use super::header::Header;

/// Largest payload in bytes of a PDU from the master.
///
/// An SNMP message over UDP has at most 65,507 bytes, and AgentX takes four or five bytes for one of BER, twice for the two
/// ends of a range. So no manager can make a master send more.
pub const MAX_PAYLOAD: usize = 512 * 1024;

/// Largest Response in bytes, with its header. net-snmp drops a longer PDU without a word, repeats the request until it
/// gives up, and closes the session (`agentx_parse` in agent/mibgroup/agentx/protocol.c).
pub const MAX_RESPONSE: usize = 65_536;

/// One complete PDU with an undecoded payload.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Frame<'a> {
    /// The header.
    pub header: Header,
    /// The payload, of the length in the header.
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Length of the PDU in bytes, with its header.
    #[must_use]
    pub fn pdu_len(&self) -> usize {
        Header::LEN + self.payload.len()
    }
}

/// The header has an invalid length. The beginning of the next PDU is unknown, so the connection must be dropped.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error(
    "The master sent a PDU with a payload of {} bytes; it must be a multiple of 4, and at most {MAX_PAYLOAD}",
    header.payload_length
)]
pub struct FrameError {
    /// The header with that length.
    pub header: Header,
}

/// The PDU at the beginning of `bytes`; `None`: it is incomplete.
///
/// # Errors
///
/// [`FrameError`] as soon as the header is complete, before any of the payload.
pub fn split(bytes: &[u8]) -> Result<Option<Frame<'_>>, FrameError> {
    let Some((header, rest)) = bytes.split_first_chunk() else {
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

/// Received bytes that have not been handled.
#[derive(Debug, Default)]
pub struct Inbox {
    bytes: Vec<u8>,
    handled: usize,
}

impl Inbox {
    /// Capacity in bytes to which the buffer shrinks after a large PDU.
    const READ_AHEAD: usize = 16 * 1024;

    /// The buffer to read into, with spare capacity.
    pub fn fill(&mut self) -> &mut Vec<u8> {
        self.bytes.drain(..self.handled);
        self.handled = 0;
        if self.bytes.is_empty() {
            self.bytes.shrink_to(Self::READ_AHEAD);
        }
        self.bytes.reserve(Self::READ_AHEAD / 4);
        &mut self.bytes
    }

    /// Takes the next PDU, if it is complete.
    ///
    /// # Errors
    ///
    /// [`FrameError`]; the rest of the inbox cannot be used.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, FrameError> {
        let frame = split(&self.bytes[self.handled..])?;
        self.handled += frame.as_ref().map_or(0, Frame::pdu_len);
        Ok(frame)
    }

    /// Drops all bytes, for a new connection.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.handled = 0;
    }

    /// Number of unhandled bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() - self.handled
    }

    /// Whether there are no unhandled bytes.
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
    fn bytes_may_come_one_by_one() {
        let mut bytes = header(8).encode().to_vec();
        bytes.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        bytes.extend(header(0).encode());
        let mut inbox = Inbox::default();
        let mut ends = Vec::new();
        for (at, byte) in bytes.iter().enumerate() {
            inbox.fill().push(*byte);
            if let Some(frame) = inbox.next_frame().unwrap() {
                ends.push((at + 1, frame.payload.len()));
            }
        }
        assert_eq!(ends, [(28, 8), (48, 0)]);
        assert!(inbox.is_empty());
    }

    #[test]
    fn an_invalid_length_is_refused_before_its_payload_comes() {
        let largest = u32::try_from(MAX_PAYLOAD).unwrap();
        assert_eq!(split(&header(largest).encode()), Ok(None));
        for wrong in [1, 2, 3, largest + 4, u32::MAX, u32::MAX - 3] {
            let header = header(wrong);
            assert_eq!(split(&header.encode()), Err(FrameError { header }));
        }
    }

    #[test]
    fn memory_of_a_large_pdu_is_freed() {
        let mut inbox = Inbox::default();
        let large = header(u32::try_from(MAX_PAYLOAD).unwrap());
        inbox.fill().extend(large.encode());
        inbox.fill().resize(Header::LEN + MAX_PAYLOAD, 0);
        assert_eq!(inbox.next_frame().unwrap().unwrap().payload.len(), MAX_PAYLOAD);
        assert!(inbox.fill().capacity() <= 2 * Inbox::READ_AHEAD);
    }
}

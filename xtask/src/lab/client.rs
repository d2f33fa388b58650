//! A minimal SNMPv2c client over UDP, for gets that are repeated thousands of times or timed.

use std::{
    io,
    net::UdpSocket,
    time::{Duration, Instant},
};

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const GET_REQUEST: u8 = 0xa0;

/// A response and its time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// The numbers in the order of the names, for integers, counters and time ticks; `None` = no such instance, or not a
    /// number.
    pub values: Vec<Option<u64>>,
    /// Before the request was sent.
    pub asked: Instant,
    /// After the response was received.
    pub answered: Instant,
}

/// A client of one agent, over one socket.
#[derive(Debug)]
pub struct Client {
    socket: UdpSocket,
    last: u8,
}

impl Client {
    /// A client of the agent at this port of loopback, with the community `public`.
    ///
    /// # Errors
    ///
    /// Those of the socket.
    pub fn new(port: u16) -> io::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(("127.0.0.1", port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { socket, last: 0 })
    }

    /// Gets the values of these names.
    ///
    /// # Errors
    ///
    /// Those of the socket, including no response within 5 s, and `InvalidData` for a malformed response.
    pub fn get(&mut self, names: &[&[u32]]) -> io::Result<Answer> {
        self.last = self.last.wrapping_add(1) & 0x7f;
        let bindings: Vec<u8> = names
            .iter()
            .flat_map(|name| tlv(SEQUENCE, &[tlv(OID, &oid(name)), tlv(NULL, &[])].concat()))
            .collect();
        let pdu = [
            tlv(INTEGER, &[self.last]),
            tlv(INTEGER, &[0]),
            tlv(INTEGER, &[0]),
            tlv(SEQUENCE, &bindings),
        ]
        .concat();
        let message =
            [tlv(INTEGER, &[1]), tlv(OCTET_STRING, b"public"), tlv(GET_REQUEST, &pdu)].concat();
        let mut buffer = [0; 65_536];
        let asked = Instant::now();
        self.socket.send(&tlv(SEQUENCE, &message))?;
        let len = self.socket.recv(&mut buffer)?;
        let answered = Instant::now();
        let values = buffer
            .get(..len)
            .and_then(|message| values(message, self.last))
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "that is no answer"))?;
        Ok(Answer { values, asked, answered })
    }

    /// Gets the number of one name.
    ///
    /// # Errors
    ///
    /// As [`get`](Self::get).
    pub fn number(&mut self, name: &[u32]) -> io::Result<Option<u64>> {
        Ok(self.get(&[name])?.values.first().copied().flatten())
    }
}

/// BER with a definite length of at most 65,535.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let [.., high, low] = content.len().to_be_bytes();
    let mut octets = match content.len() {
        0..=127 => vec![tag, low],
        _ => vec![tag, 0x82, high, low],
    };
    octets.extend_from_slice(content);
    octets
}

/// The content of an object identifier that begins with 1.3.
fn oid(parts: &[u32]) -> Vec<u8> {
    let mut octets = vec![0x2b];
    for &part in parts.iter().skip(2) {
        for shift in (0..5).rev().map(|septet| septet * 7) {
            let septet = u8::try_from((part >> shift) & 0x7f).unwrap_or(0);
            if part >> shift > 0 || shift == 0 {
                octets.push(if shift > 0 { septet | 0x80 } else { septet });
            }
        }
    }
    octets
}

/// Splits off one element. Returns its tag, its content, and the rest.
fn take(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = octets.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        _ => {
            let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (usize::try_from(number(len)?).ok()?, rest)
        }
    };
    let (content, rest) = rest.split_at_checked(len)?;
    Some((tag, content, rest))
}

fn number(octets: &[u8]) -> Option<u64> {
    let digits = octets.iter().skip_while(|&&octet| octet == 0);
    (digits.clone().count() <= 8)
        .then(|| digits.fold(0, |number, &octet| number << 8 | u64::from(octet)))
}

fn values(message: &[u8], request: u8) -> Option<Vec<Option<u64>>> {
    let (SEQUENCE, message, _) = take(message)? else { return None };
    let (_, _version, rest) = take(message)?;
    let (_, _community, rest) = take(rest)?;
    let (_, pdu, _) = take(rest)?;
    let (_, id, rest) = take(pdu)?;
    let (_, error, rest) = take(rest)?;
    let (_, _index, rest) = take(rest)?;
    let (_, mut bindings, _) = take(rest)?;
    if number(id)? != u64::from(request) || number(error)? != 0 {
        return None;
    }
    let mut values = Vec::new();
    while !bindings.is_empty() {
        let (_, binding, rest) = take(bindings)?;
        bindings = rest;
        let (_, _name, value) = take(binding)?;
        let (tag, content, _) = take(value)?;
        // INTEGER, Counter32, Gauge32, TimeTicks, Counter64
        let is_number = matches!(tag, INTEGER | 0x41..=0x43 | 0x46);
        values.push(if is_number { number(content) } else { None });
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_of_all_lengths_come_back() {
        for len in [0, 1, 127, 128, 255, 256, 65_535] {
            let content = vec![7; len];
            let element = tlv(OCTET_STRING, &content);
            assert_eq!(take(&element), Some((OCTET_STRING, &content[..], &[][..])));
        }
        assert_eq!(take(&[OCTET_STRING, 5, 1]), None);
    }

    #[test]
    fn parts_have_as_many_septets_as_they_need() {
        let expected = [0x2b, 6, 0x81, 0x6c, 0x8f, 0xff, 0xff, 0xff, 0x7f, 0];
        assert_eq!(oid(&[1, 3, 6, 236, u32::MAX, 0]), expected);
    }
}

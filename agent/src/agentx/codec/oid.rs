//! Object identifiers and ranges of them (RFC 2741 sections 5.1 and 5.2).

use super::{
    DecodeError,
    cursor::{Reader, Writer},
    list::{Element, List},
};
use crate::snmp::Oid;

/// The identifier before `prefix`, which stands for 1.3.6.1.prefix.
const INTERNET: [u32; 4] = [1, 3, 6, 1];

/// Decodes the object identifier at the reader, and its `include` field.
pub(super) fn decode(reader: &mut Reader<'_>) -> Result<(Oid, bool), DecodeError> {
    let field = RawOid::read(reader)?;
    let mut oid = Oid::empty();
    let too_long = DecodeError::OidTooLong { offset: field.offset };
    if field.prefix != 0 {
        for part in INTERNET.into_iter().chain([u32::from(field.prefix)]) {
            oid.push(part).map_err(|_| too_long)?;
        }
    }
    let mut parts = Reader::new(field.parts, reader.order());
    while !parts.is_empty() {
        oid.push(parts.u32()?).map_err(|_| too_long)?;
    }
    Ok((oid, field.include))
}

/// Validates the object identifier at the reader and skips it.
pub(super) fn skip(reader: &mut Reader<'_>) -> Result<(), DecodeError> {
    RawOid::read(reader).map(drop)
}

/// Appends `oid` in its short form.
pub(super) fn encode(writer: &mut Writer<'_>, oid: &Oid, include: bool) {
    let (prefix, parts) = match oid.strip_prefix(&INTERNET) {
        Some([first, rest @ ..]) => match u8::try_from(*first) {
            // 0 means no prefix.
            Ok(first) if first > 0 => (first, rest),
            _ => (0, oid.parts()),
        },
        _ => (0, oid.parts()),
    };
    // An `Oid` has at most 128 parts.
    let count = u8::try_from(parts.len()).unwrap_or(u8::MAX);
    writer.bytes(&[count, prefix, u8::from(include), 0]);
    for part in parts {
        writer.u32(*part);
    }
}

/// The fields of an object identifier, with its length checked.
struct RawOid<'a> {
    offset: usize,
    prefix: u8,
    include: bool,
    parts: &'a [u8],
}

impl<'a> RawOid<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let offset = reader.offset();
        let [count, prefix, include, _reserved] = reader.array()?;
        let count = usize::from(count);
        let expanded = if prefix == 0 { count } else { count + INTERNET.len() + 1 };
        if expanded > Oid::MAX_LEN {
            return Err(DecodeError::OidTooLong { offset });
        }
        let parts = reader.take(4 * count)?;
        Ok(Self { offset, prefix, include: include != 0, parts })
    }
}

/// A range of names in a request (section 5.2).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SearchRange {
    /// The name to get, or the beginning of a search.
    pub start: Oid,
    /// Whether `start` itself may be the result of a search.
    pub include: bool,
    /// End of the search, exclusive; without parts: unbounded.
    pub end: Oid,
}

/// The ranges of one request.
pub type SearchRanges<'a> = List<'a, SearchRange>;

impl<'a> Element<'a> for SearchRange {
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError> {
        let (start, include) = decode(reader)?;
        let (end, _) = decode(reader)?;
        Ok(Self { start, include, end })
    }

    fn skip(reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        skip(reader)?;
        skip(reader)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::header::ByteOrder, *};

    fn bytes(oid: &Oid) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut Writer::new(&mut out, ByteOrder::Network), oid, false);
        out
    }

    #[track_caller]
    fn check(parts: &[u32], expected: &[u8]) {
        let oid = Oid::of(parts);
        assert_eq!(bytes(&oid), expected);
        let mut reader = Reader::new(expected, ByteOrder::Network);
        assert_eq!(decode(&mut reader), Ok((oid, false)));
        assert!(reader.is_empty());
    }

    #[test]
    fn the_prefix_is_used_where_it_can_be() {
        check(&[], &[0, 0, 0, 0]);
        check(&[1, 3, 6, 1], &[4, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 6, 0, 0, 0, 1]);
        check(&[1, 3, 6, 1, 2], &[0, 2, 0, 0]);
        check(&[1, 3, 6, 1, 255, 9], &[1, 255, 0, 0, 0, 0, 0, 9]);
        check(&[0, 0], &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_part_that_fits_no_prefix_is_written_out() {
        for part in [0, 256, u32::MAX] {
            assert_eq!(bytes(&Oid::of(&[1, 3, 6, 1, part]))[..2], [5, 0]);
        }
    }

    #[test]
    fn a_prefix_counts_towards_the_128() {
        let mut full = vec![123, 2, 0, 0];
        full.resize(4 + 4 * 123, 1);
        assert_eq!(decode(&mut Reader::new(&full, ByteOrder::Network)).unwrap().0.len(), 128);
        full[0] = 124;
        full.resize(4 + 4 * 124, 1);
        let refused = Err(DecodeError::OidTooLong { offset: 0 });
        assert_eq!(skip(&mut Reader::new(&full, ByteOrder::Network)), refused);
    }
}

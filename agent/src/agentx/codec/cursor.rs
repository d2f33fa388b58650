//! Numbers and octet strings in either byte order (RFC 2741 sections 5.3 and 6.1).

use super::{DecodeError, header::ByteOrder};

/// Reads fields one after the other, never beyond the end.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    order: ByteOrder,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], order: ByteOrder) -> Self {
        Self { bytes, at: 0, order }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> usize {
        self.at
    }

    pub(super) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(super) fn is_empty(&self) -> bool {
        self.at >= self.bytes.len()
    }

    /// The bytes that have not been read.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// The next `len` bytes.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.rest();
        let field = rest.get(..len).ok_or(DecodeError::Truncated {
            offset: self.at,
            needed: len,
            left: rest.len(),
        })?;
        self.at += len;
        Ok(field)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    pub(super) fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(self.order.u16(self.array()?))
    }

    pub(super) fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(self.order.u32(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, DecodeError> {
        let bytes = self.array()?;
        Ok(match self.order {
            ByteOrder::Network => u64::from_be_bytes(bytes),
            ByteOrder::Little => u64::from_le_bytes(bytes),
        })
    }

    /// An octet string with its padding to a multiple of four.
    pub(super) fn octet_string(&mut self) -> Result<&'a [u8], DecodeError> {
        let offset = self.at;
        let len = self.u32()?;
        let left = self.rest().len();
        // A length beyond any address space is just another length that does not fit.
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let padded = len.checked_next_multiple_of(4).unwrap_or(usize::MAX);
        let truncated = DecodeError::Truncated { offset, needed: padded, left };
        let field = self.take(padded).map_err(|_| truncated)?;
        field.get(..len).ok_or(truncated)
    }

    /// Checks that no bytes follow the last field.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.rest().len() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { offset: self.at, count }),
        }
    }
}

/// Appends fields to a buffer.
#[derive(Debug)]
pub(super) struct Writer<'o> {
    out: &'o mut Vec<u8>,
    order: ByteOrder,
}

impl<'o> Writer<'o> {
    pub(super) fn new(out: &'o mut Vec<u8>, order: ByteOrder) -> Self {
        Self { out, order }
    }

    /// The buffer, to patch fields whose values are known late.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        self.out
    }

    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    pub(super) fn order(&self) -> ByteOrder {
        self.order
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    pub(super) fn u16(&mut self, number: u16) {
        self.bytes(&self.order.u16_bytes(number));
    }

    pub(super) fn u32(&mut self, number: u32) {
        self.bytes(&self.order.u32_bytes(number));
    }

    pub(super) fn u64(&mut self, number: u64) {
        self.bytes(&match self.order {
            ByteOrder::Network => number.to_be_bytes(),
            ByteOrder::Little => number.to_le_bytes(),
        });
    }

    /// Length, bytes and padding. Bytes beyond `u32::MAX` would not fit: a writer's limit comes long before.
    pub(super) fn octet_string(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.bytes(bytes);
        let padding = bytes.len().next_multiple_of(4) - bytes.len();
        self.out.resize(self.out.len() + padding, 0);
    }
}

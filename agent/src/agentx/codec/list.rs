//! Lists that fill the rest of a payload.

use std::marker::PhantomData;

use super::{DecodeError, cursor::Reader};

/// Element of a list.
pub trait Element<'a>: Sized {
    /// Decodes the element at the reader.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] when the bytes are no such element.
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;

    /// Validates the element at the reader and skips it.
    ///
    /// # Errors
    ///
    /// Those of [`decode`](Self::decode).
    fn skip(reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        Self::decode(reader).map(drop)
    }
}

/// The validated elements of a PDU. Iterating over them cannot fail.
#[derive(Clone, Debug)]
pub struct List<'a, T> {
    reader: Reader<'a>,
    count: usize,
    element: PhantomData<T>,
}

impl<'a, T: Element<'a>> List<'a, T> {
    /// Validates all that is left in the reader.
    pub(super) fn decode(reader: Reader<'a>) -> Result<Self, DecodeError> {
        let mut ahead = reader.clone();
        let mut count = 0;
        while !ahead.is_empty() {
            T::skip(&mut ahead)?;
            count += 1;
        }
        Ok(Self { reader, count, element: PhantomData })
    }

    /// Number of elements that are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether no element is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl<'a, T: Element<'a>> Iterator for List<'a, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.count = self.count.checked_sub(1)?;
        T::decode(&mut self.reader).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl<'a, T: Element<'a>> ExactSizeIterator for List<'a, T> {}

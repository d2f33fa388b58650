//! Lists that fill the rest of a PDU.

use std::marker::PhantomData;

use super::{DecodeError, cursor::Reader};

/// What such a list is made of.
pub trait Element<'a>: Sized {
    /// The one at the reader.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where there is none.
    fn decode(reader: &mut Reader<'a>) -> Result<Self, DecodeError>;

    /// The same where nobody wants to see it.
    ///
    /// # Errors
    ///
    /// [`DecodeError`], the same.
    fn skip(reader: &mut Reader<'a>) -> Result<(), DecodeError> {
        Self::decode(reader).map(drop)
    }
}

/// All of one PDU, checked: walking them cannot fail.
#[derive(Clone, Debug)]
pub struct List<'a, T> {
    reader: Reader<'a>,
    count: usize,
    element: PhantomData<T>,
}

impl<'a, T: Element<'a>> List<'a, T> {
    /// Checks everything that the reader has left.
    pub(super) fn decode(reader: Reader<'a>) -> Result<Self, DecodeError> {
        let mut ahead = reader.clone();
        let mut count = 0;
        while !ahead.is_empty() {
            T::skip(&mut ahead)?;
            count += 1;
        }
        Ok(Self { reader, count, element: PhantomData })
    }

    /// How many are left.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none left.
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

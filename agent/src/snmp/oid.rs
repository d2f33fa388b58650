//! Object identifiers.

use std::{fmt, str::FromStr};

use thiserror::Error;

/// An object identifier of at most 128 sub-identifiers (RFC 2578 section 3.5), kept inline: the request
/// path makes and compares many of them and allocates none. Ordered as SNMP orders instances:
/// lexicographically by sub-identifier.
#[derive(Clone, Copy)]
pub struct Oid {
    len: u8,
    parts: [u32; Self::MAX_LEN],
}

/// Why octets, words or text are no object identifier.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
pub enum OidError {
    /// RFC 2578 allows 128 sub-identifiers.
    #[error("The object identifier has more than 128 sub-identifiers")]
    TooLong,
    /// Text form only.
    #[error(
        "The object identifier is not a list of numbers below 4294967296 with dots between them"
    )]
    NotNumbers,
}

impl Oid {
    /// The most sub-identifiers.
    pub const MAX_LEN: usize = 128;

    /// The identifier without any sub-identifier: the null object identifier of RFC 2741 section 5.1.
    #[must_use]
    pub const fn empty() -> Self {
        Self { len: 0, parts: [0; Self::MAX_LEN] }
    }

    /// An identifier of constant parts.
    ///
    /// # Panics
    ///
    /// At compile time, where it is used in a constant, if there are more than 128 parts.
    #[must_use]
    pub const fn of(parts: &[u32]) -> Self {
        assert!(
            parts.len() <= Self::MAX_LEN,
            "an object identifier has at most 128 sub-identifiers"
        );
        let mut oid = Self::empty();
        let mut i = 0;
        while i < parts.len() {
            oid.parts[i] = parts[i];
            i += 1;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
        {
            oid.len = parts.len() as u8;
        }
        oid
    }

    /// An identifier of any parts.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`] beyond 128 parts.
    pub const fn try_of(parts: &[u32]) -> Result<Self, OidError> {
        if parts.len() > Self::MAX_LEN {
            return Err(OidError::TooLong);
        }
        Ok(Self::of(parts))
    }

    /// These parts one after the other.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`] beyond 128 sub-identifiers together.
    pub fn concat<const N: usize>(all: [&[u32]; N]) -> Result<Self, OidError> {
        let mut oid = Self::empty();
        oid.replace(all)?;
        Ok(oid)
    }

    /// Becomes these parts one after the other; the identifier itself is not moved.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`] beyond 128 sub-identifiers together; the identifier is empty then.
    pub fn replace<const N: usize>(&mut self, all: [&[u32]; N]) -> Result<(), OidError> {
        self.len = 0;
        let mut len = 0;
        for parts in all {
            let end = len + parts.len();
            self.parts.get_mut(len..end).ok_or(OidError::TooLong)?.copy_from_slice(parts);
            len = end;
        }
        #[expect(clippy::cast_possible_truncation, reason = "at most 128")]
        {
            self.len = len as u8;
        }
        Ok(())
    }

    /// Appends one sub-identifier.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`] when there are 128 already.
    pub fn push(&mut self, part: u32) -> Result<(), OidError> {
        let slot = self.parts.get_mut(usize::from(self.len)).ok_or(OidError::TooLong)?;
        *slot = part;
        self.len += 1;
        Ok(())
    }

    /// The sub-identifiers.
    #[must_use]
    pub fn parts(&self) -> &[u32] {
        &self.parts[..usize::from(self.len)]
    }

    /// Number of sub-identifiers.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether this is the null object identifier.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What follows `prefix`, if the identifier begins with it.
    #[must_use]
    pub fn strip_prefix(&self, prefix: &[u32]) -> Option<&[u32]> {
        self.parts().strip_prefix(prefix)
    }
}

impl Default for Oid {
    fn default() -> Self {
        Self::empty()
    }
}

impl PartialEq for Oid {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for Oid {}

impl PartialOrd for Oid {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Oid {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.parts().cmp(other.parts())
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, part) in self.parts().iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            write!(f, "{part}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Oid {
    type Err = OidError;

    fn from_str(text: &str) -> Result<Self, OidError> {
        let mut oid = Self::empty();
        let text = text.strip_prefix('.').unwrap_or(text);
        for part in text.split('.') {
            oid.push(part.parse().map_err(|_| OidError::NotNumbers)?)?;
        }
        Ok(oid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_parts_are_the_same_identifier() {
        let oid: Oid = ".1.3.6.1.2.1.236".parse().unwrap();
        assert_eq!(oid.parts(), [1, 3, 6, 1, 2, 1, 236]);
        assert_eq!(oid.to_string(), "1.3.6.1.2.1.236");
        assert_eq!("1..2".parse::<Oid>(), Err(OidError::NotNumbers));
        assert_eq!("4294967296".parse::<Oid>(), Err(OidError::NotNumbers));
    }

    #[test]
    fn order_is_by_sub_identifier_and_a_prefix_comes_first() {
        let [a, b, c] = [&[1, 2][..], &[1, 2, 0], &[1, 2_147_483_648]].map(Oid::of);
        assert!(a < b && b < c);
    }

    #[test]
    fn the_129th_sub_identifier_is_refused() {
        let mut oid = Oid::of(&[1; 128]);
        assert_eq!(oid.push(1), Err(OidError::TooLong));
        assert_eq!(Oid::try_of(&[1; 129]), Err(OidError::TooLong));
        assert_eq!(Oid::concat([&[1; 127][..], &[2], &[]]).unwrap().len(), 128);
        assert_eq!(Oid::concat([&[1; 127][..], &[2], &[3]]), Err(OidError::TooLong));
    }
}

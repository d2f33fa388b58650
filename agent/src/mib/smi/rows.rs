//! How the rows of a table are found, and the order of their indexes.

use crate::snmp::Oid;

/// The rows of a conceptual table, found by search in the context `C`: the table itself is never built. Tables
/// with the same rows (AUGMENTS) share one implementation.
pub trait Rows<C: 'static>: 'static {
    /// The sub-identifiers of a row's index: `[u32; N]` for an index of N integers, [`Oid`] for one with strings or
    /// object identifiers in it.
    type Index: Index;

    /// What a getter sees of a row.
    type Row<'a>: Copy;

    /// The first row whose index is `at` or after it. Costs a binary search, and allocates nothing.
    fn at_or_after<'a>(context: &'a C, at: Self::Index) -> Option<Self::Row<'a>>;

    /// The row's index.
    fn index(row: Self::Row<'_>) -> Self::Index;
}

/// The rows of a scalar: its one instance, `.0`.
#[derive(Debug)]
pub struct Single;

impl<C: 'static> Rows<C> for Single {
    type Index = [u32; 1];
    type Row<'a> = ();

    fn at_or_after(_: &C, at: [u32; 1]) -> Option<()> {
        (at == [0]).then_some(())
    }

    fn index((): ()) -> [u32; 1] {
        [0]
    }
}

/// The sub-identifiers of an index, ordered as SNMP orders instances.
pub trait Index: Copy + Eq + Sized {
    /// The index that a name has after its object's own sub-identifiers, if it can be one.
    fn exact(tail: &[u32]) -> Option<Self>;

    /// The least index whose instance comes after `tail`; with `include`, also the one at `tail` itself. `None`:
    /// all instances come before.
    fn lower_bound(tail: &[u32], include: bool) -> Option<Self>;

    /// The index directly after this one; `None` for the last.
    fn successor(self) -> Option<Self>;

    /// The sub-identifiers.
    fn parts(&self) -> &[u32];
}

impl<const N: usize> Index for [u32; N] {
    fn exact(tail: &[u32]) -> Option<Self> {
        tail.try_into().ok()
    }

    fn lower_bound(tail: &[u32], include: bool) -> Option<Self> {
        let mut at = [0; N];
        let used = tail.len().min(N);
        at[..used].copy_from_slice(&tail[..used]);
        // A shorter name is the prefix of the instances that begin with it, and comes before them; a longer
        // one comes after the instance that it begins with.
        let is_past = tail.len() > N || (tail.len() == N && !include);
        if is_past { at.successor() } else { Some(at) }
    }

    fn successor(mut self) -> Option<Self> {
        for part in self.iter_mut().rev() {
            *part = part.wrapping_add(1);
            if *part != 0 {
                return Some(self);
            }
        }
        None
    }

    fn parts(&self) -> &[u32] {
        self
    }
}

/// An index of any length. Strings and object identifiers in it are preceded by their length, unless they are the
/// last part and IMPLIED (RFC 2578 section 7.7); which of these it is, [`Rows::index`] knows.
impl Index for Oid {
    fn exact(tail: &[u32]) -> Option<Self> {
        Self::try_of(tail).ok()
    }

    fn lower_bound(tail: &[u32], include: bool) -> Option<Self> {
        let at = Self::exact(tail)?;
        if include { Some(at) } else { at.successor() }
    }

    fn successor(mut self) -> Option<Self> {
        // Nothing lies between a name and the same with a 0 behind it.
        if self.push(0).is_ok() {
            return Some(self);
        }
        let last = self.parts().iter().rposition(|&part| part < u32::MAX)?;
        let mut next = Self::try_of(&self.parts()[..last]).ok()?;
        next.push(self.parts()[last] + 1).ok()?;
        Some(next)
    }

    fn parts(&self) -> &[u32] {
        self.parts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_comes_before_its_instances_and_a_longer_name_after() {
        type Two = [u32; 2];
        assert_eq!(Two::lower_bound(&[], false), Some([0, 0]));
        assert_eq!(Two::lower_bound(&[7], false), Some([7, 0]));
        assert_eq!(Two::lower_bound(&[7, 3], true), Some([7, 3]));
        assert_eq!(Two::lower_bound(&[7, 3], false), Some([7, 4]));
        assert_eq!(Two::lower_bound(&[7, 3, 0], true), Some([7, 4]));
    }

    #[test]
    fn the_successor_carries_and_ends() {
        assert_eq!([7, u32::MAX].successor(), Some([8, 0]));
        assert_eq!([7, i32::MAX.unsigned_abs()].successor(), Some([7, 1 << 31]));
        assert_eq!([u32::MAX; 3].successor(), None);
        assert_eq!(<[u32; 2]>::lower_bound(&[u32::MAX, u32::MAX], false), None);
        assert_eq!(<[u32; 2]>::lower_bound(&[u32::MAX, u32::MAX], true), Some([u32::MAX; 2]));
        assert_eq!(<[u32; 1]>::lower_bound(&[u32::MAX, 0], true), None);
    }

    #[test]
    fn an_index_of_any_length_is_followed_by_the_longer_one() {
        let at = |parts: &[u32]| Some(Oid::of(parts));
        assert_eq!(<Oid as Index>::lower_bound(&[3, 97], true), at(&[3, 97]));
        assert_eq!(<Oid as Index>::lower_bound(&[3, 97], false), at(&[3, 97, 0]));
        let mut longest = [u32::MAX; 128];
        assert_eq!(Oid::of(&longest).successor(), None);
        longest[1] = 5;
        assert_eq!(Oid::of(&longest).successor(), at(&[u32::MAX, 6]));
    }
}

//! A number with its origin.

use crate::counters::Taken;

/// A number: who counted it, or why it is absent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Number<'a, T> {
    /// The kernel counted it; it is of this moment.
    Kernel(T),
    /// The hypervisor counted it; it is of the time given.
    Hypervisor(Taken<T>),
    /// It is 0: the VM is off (RFC 7666 allows the discontinuity, and the row stays).
    Off,
    /// It is not known, for this reason.
    Absent(&'a str),
}

impl<'a, T> Number<'a, T> {
    /// What the kernel counted, or the reason why there is nothing.
    #[must_use]
    pub(super) fn of_kernel(number: Option<T>, why_not: &'a str) -> Self {
        number.map_or(Self::Absent(why_not), Self::Kernel)
    }

    /// Why it is absent; `None` = it is not.
    #[must_use]
    pub const fn why_absent(&self) -> Option<&'a str> {
        match *self {
            Self::Absent(why) => Some(why),
            _ => None,
        }
    }
}

impl<T: Default> Number<'_, T> {
    /// The number itself, 0 while the VM is off; `None` = it is absent.
    #[must_use]
    pub fn value(self) -> Option<T> {
        match self {
            Self::Kernel(value) | Self::Hypervisor(Taken { value, .. }) => Some(value),
            Self::Off => Some(T::default()),
            Self::Absent(_) => None,
        }
    }
}

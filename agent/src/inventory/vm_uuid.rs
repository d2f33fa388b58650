//! The UUID of a VM.

use std::fmt;

use uuid::Uuid;

/// The UUID of a VM, as its VMM or libvirt has it. `Display` is the hyphenated form.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct VmUuid(Uuid);

impl VmUuid {
    /// A UUID from its 16 bytes in network byte order.
    #[must_use]
    pub const fn of_bytes(bytes: [u8; 16]) -> Self {
        Self(Uuid::from_bytes(bytes))
    }

    /// Parses a UUID in any of its textual forms; `None`: the text is no UUID.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Uuid::try_parse(text).ok().map(Self)
    }

    /// The 16 bytes in network byte order: the value of vmUUID.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The same as a value of the `uuid` crate.
    #[must_use]
    pub const fn to_uuid(self) -> Uuid {
        self.0
    }

    /// The UUID that stands for this domain of a second libvirt connection in the index file, where another VM has
    /// the UUID itself: the same for the same connection and UUID, and no VM's own. RFC 9562 section 5.8.
    #[must_use]
    pub(crate) fn of_domain_at(self, uri: &str) -> Self {
        // FNV-1a of 128 bits: stable over versions of the agent, as the file requires.
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        let bytes = self.as_bytes().iter().chain(uri.as_bytes());
        let hash = bytes.fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
        Self(uuid::Builder::from_custom_bytes(hash.to_be_bytes()).into_uuid())
    }
}

impl From<Uuid> for VmUuid {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for VmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for VmUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

//! The header of a qcow2 image (docs/interop/qcow2.txt in QEMU's sources). Accepts any bytes.

/// Bytes that are read of an image. Header and extensions are in the first cluster, of 512 bytes or more; the extensions
/// that are used here come early in it.
pub(super) const HEADER_LEN: usize = 4096;

/// Longest name of a backing file, in bytes.
const MAX_NAME: usize = 1023;

/// The fields of a header that are used, and those of its extensions.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Header {
    /// Virtual size in bytes.
    pub(super) size: u64,
    /// Offset and length of the backing file's name.
    pub(super) backing: Option<(u64, usize)>,
    /// The backing file's format is declared as raw.
    pub(super) backing_is_raw: bool,
    /// Name of the external data file.
    pub(super) data_file: Option<String>,
}

impl Header {
    const MAGIC: u32 = 0x5146_49fb;
    /// Length of a version 2 header; later versions state theirs.
    const V2_LEN: usize = 72;
    /// Extension: format of the backing file.
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    /// Extension: name of the external data file.
    const DATA_FILE: u32 = 0x4441_5441;

    /// Parses the beginning of a file. `None`: it is not a qcow2 image.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        if word(bytes, 0)? != Self::MAGIC {
            return None;
        }
        let version = word(bytes, 4)?;
        let (offset, len) = (long(bytes, 8)?, word(bytes, 16)? as usize);
        let backing = (offset != 0 && (1..=MAX_NAME).contains(&len)).then_some((offset, len));
        let header_len =
            if version < 3 { Some(Self::V2_LEN) } else { word(bytes, 100).map(|n| n as usize) };
        let mut header = Self { size: long(bytes, 24)?, backing, ..Self::default() };
        if let Some(at) = header_len.filter(|_| version > 1) {
            header.extend(bytes, at);
        }
        Some(header)
    }

    /// Reads the extensions at `at`: each a type, a length, and that many bytes, padded to eight. `None`: they are truncated
    /// or malformed; those before that were read.
    fn extend(&mut self, bytes: &[u8], mut at: usize) -> Option<()> {
        loop {
            let (kind, len) = (word(bytes, at)?, word(bytes, at.checked_add(4)?)? as usize);
            let data = bytes.get(at.checked_add(8)?..)?;
            match kind {
                0 => return Some(()),
                Self::BACKING_FORMAT => self.backing_is_raw = data.get(..len)? == b"raw",
                Self::DATA_FILE => {
                    self.data_file = String::from_utf8(data.get(..len)?.to_vec()).ok();
                }
                _ => {}
            }
            at = at.checked_add(8)?.checked_add(len.checked_next_multiple_of(8)?)?;
        }
    }
}

/// The big-endian 32-bit number at `at`.
fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The big-endian 64-bit number at `at`.
fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A version 3 header with these extensions, followed by the name of the backing file.
    fn image(extensions: &[(u32, &[u8])], backing: &str) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        for (kind, data) in extensions {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            bytes.extend(*data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend([0; 8]);
        let offset = bytes.len() as u64;
        bytes.extend(backing.as_bytes());
        bytes[..4].copy_from_slice(&Header::MAGIC.to_be_bytes());
        bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
        bytes[8..16].copy_from_slice(&offset.to_be_bytes());
        bytes[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        bytes[24..32].copy_from_slice(&(4_u64 << 20).to_be_bytes());
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        bytes
    }

    #[test]
    fn a_header_names_the_backing_file_and_the_data_file() {
        let bytes = image(&[(0xe279_2aca, b"raw"), (Header::DATA_FILE, b"data.raw")], "base.raw");
        let header = Header::parse(&bytes).unwrap();
        let (offset, len) = header.backing.unwrap();
        let offset = usize::try_from(offset).unwrap();
        assert_eq!(&bytes[offset..offset + len], b"base.raw");
        assert_eq!((header.size, header.data_file.as_deref()), (4 << 20, Some("data.raw")));
        assert!(header.backing_is_raw);
        assert_eq!(Header::parse(&image(&[], "")).unwrap().backing, None);
        assert_eq!(Header::parse(&[0; HEADER_LEN]), None);
        // An extension longer than the file.
        let cut = &bytes[..130];
        assert_eq!(Header::parse(cut).unwrap().data_file, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_header_panics(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
            len in any::<u32>(),
            name in ".{0,40}",
        ) {
            let mut image = image(&[(Header::DATA_FILE, &bytes)], &name);
            // The length of the extension's data.
            image[108..112].copy_from_slice(&len.to_be_bytes());
            image.truncate(bytes.len());
            let _ = (Header::parse(&image), Header::parse(&bytes));
        }
    }
}

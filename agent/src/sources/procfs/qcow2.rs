//! The header of a qcow2 image (docs/interop/qcow2.txt in QEMU's sources). Pure: bytes in, fields out.

/// The header and its extensions lie in the first cluster, which is no smaller than 512 octets; no name is longer than 1023.
pub(super) const HEADER_LEN: usize = 4096;
const MAX_NAME: usize = 1023;

/// The header of a qcow2 image (docs/interop/qcow2.txt in QEMU's sources).
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Header {
    /// In octets, as the guest sees it.
    pub(super) size: u64,
    /// Where the name of the image lies on which it is based, and how long that is.
    pub(super) backing: Option<(u64, usize)>,
    /// That one is told to be raw.
    pub(super) backing_is_raw: bool,
    /// The file that has its data.
    pub(super) data_file: Option<String>,
}

impl Header {
    const MAGIC: u32 = 0x5146_49fb;
    /// Of version 2; later ones tell theirs.
    const LEN: usize = 72;
    /// The extensions with the format of the image on which it is based, and with the name of a data file.
    const BACKING_FORMAT: u32 = 0xe279_2aca;
    const DATA_FILE: u32 = 0x4441_5441;

    /// `None`: it is none.
    pub(super) fn parse(octets: &[u8]) -> Option<Self> {
        if word(octets, 0)? != Self::MAGIC {
            return None;
        }
        let version = word(octets, 4)?;
        let (place, len) = (long(octets, 8)?, word(octets, 16)? as usize);
        let backing = (place != 0 && (1..=MAX_NAME).contains(&len)).then_some((place, len));
        let own = if version < 3 { Some(Self::LEN) } else { word(octets, 100).map(|n| n as usize) };
        let mut header = Self { size: long(octets, 24)?, backing, ..Self::default() };
        if let Some(at) = own.filter(|_| version > 1) {
            header.extend(octets, at);
        }
        Some(header)
    }

    /// Takes in the extensions, which begin at `at`: a type, a length, and so many octets, filled up to eight. `None`: they
    /// do not end in order.
    fn extend(&mut self, octets: &[u8], mut at: usize) -> Option<()> {
        loop {
            let (kind, len) = (word(octets, at)?, word(octets, at.checked_add(4)?)? as usize);
            let data = octets.get(at.checked_add(8)?..)?;
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

fn word(octets: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(octets.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(octets: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(octets.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A header of version 3 with these extensions, and the name of what it is based on behind them.
    fn image(extensions: &[(u32, &[u8])], backing: &str) -> Vec<u8> {
        let mut octets = vec![0; 104];
        for (kind, data) in extensions {
            octets.extend(kind.to_be_bytes());
            octets.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            octets.extend(*data);
            octets.resize(octets.len().next_multiple_of(8), 0);
        }
        octets.extend([0; 8]);
        let place = octets.len() as u64;
        octets.extend(backing.bytes());
        octets[..4].copy_from_slice(&Header::MAGIC.to_be_bytes());
        octets[4..8].copy_from_slice(&3_u32.to_be_bytes());
        octets[8..16].copy_from_slice(&place.to_be_bytes());
        octets[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
        octets[24..32].copy_from_slice(&(4_u64 << 20).to_be_bytes());
        octets[100..104].copy_from_slice(&104_u32.to_be_bytes());
        octets
    }

    #[test]
    fn a_header_tells_what_the_image_is_based_on_and_where_its_data_is() {
        let octets = image(&[(0xe279_2aca, b"raw"), (Header::DATA_FILE, b"data.raw")], "base.raw");
        let header = Header::parse(&octets).unwrap();
        let (place, len) = header.backing.unwrap();
        let place = usize::try_from(place).unwrap();
        assert_eq!(&octets[place..place + len], b"base.raw");
        assert_eq!((header.size, header.data_file.as_deref()), (4 << 20, Some("data.raw")));
        assert!(header.backing_is_raw);
        assert_eq!(Header::parse(&image(&[], "")).unwrap().backing, None);
        assert_eq!(Header::parse(&[0; HEADER_LEN]), None);
        // An extension that is longer than the file.
        let cut = &octets[..130];
        assert_eq!(Header::parse(cut).unwrap().data_file, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_header_panics(
            octets in prop::collection::vec(any::<u8>(), 0..300),
            len in any::<u32>(),
            name in ".{0,40}",
        ) {
            let mut image = image(&[(Header::DATA_FILE, &octets)], &name);
            // The length of the extension's data.
            image[108..112].copy_from_slice(&len.to_be_bytes());
            image.truncate(octets.len());
            let _ = (Header::parse(&image), Header::parse(&octets));
        }
    }
}

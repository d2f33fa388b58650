//! The header of a PDU (RFC 2741 section 6.1).

/// `h.version`: the only version of the protocol.
pub(super) const VERSION: u8 = 1;

/// Byte order of the numbers in a PDU (`NETWORK_BYTE_ORDER` in `h.flags`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ByteOrder {
    /// Most significant byte first; the flag is set.
    Network,
    /// Least significant byte first.
    Little,
}

impl ByteOrder {
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Network => u16::from_be_bytes(bytes),
            Self::Little => u16::from_le_bytes(bytes),
        }
    }

    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Network => u32::from_be_bytes(bytes),
            Self::Little => u32::from_le_bytes(bytes),
        }
    }

    pub(super) fn u16_bytes(self, number: u16) -> [u8; 2] {
        match self {
            Self::Network => number.to_be_bytes(),
            Self::Little => number.to_le_bytes(),
        }
    }

    pub(super) fn u32_bytes(self, number: u32) -> [u8; 4] {
        match self {
            Self::Network => number.to_be_bytes(),
            Self::Little => number.to_le_bytes(),
        }
    }
}

/// `h.flags`, unknown bits included.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flags(pub u8);

impl Flags {
    /// Bit 3: the payload begins with the name of a context (see [`Header::has_context`]).
    pub const NON_DEFAULT_CONTEXT: u8 = 0x08;
    /// Bit 4: [`ByteOrder::Network`].
    pub const NETWORK_BYTE_ORDER: u8 = 0x10;

    /// Flags with the byte order and no others.
    #[must_use]
    pub const fn of(order: ByteOrder) -> Self {
        match order {
            ByteOrder::Network => Self(Self::NETWORK_BYTE_ORDER),
            ByteOrder::Little => Self(0),
        }
    }

    /// Byte order of the numbers in this PDU.
    #[must_use]
    pub const fn byte_order(self) -> ByteOrder {
        if self.0 & Self::NETWORK_BYTE_ORDER == 0 { ByteOrder::Little } else { ByteOrder::Network }
    }
}

/// Declares the types: name and number of RFC 2741 section 6.1.
macro_rules! pdu_types {
    ($($name:ident = $number:literal)*) => {
        /// Type of a PDU, with the names of RFC 2741 section 6.2.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u8)]
        #[expect(missing_docs, reason = "the names are those of the RFC")]
        pub enum PduType { $($name = $number),* }

        impl PduType {
            /// The type with the number `h.type`.
            #[must_use]
            pub const fn from_number(number: u8) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The number in `h.type`.
            #[must_use]
            pub const fn number(self) -> u8 {
                match self { $(Self::$name => $number),* }
            }
        }
    };
}

pdu_types! {
    Open = 1
    Close = 2
    Register = 3
    Unregister = 4
    Get = 5
    GetNext = 6
    GetBulk = 7
    TestSet = 8
    CommitSet = 9
    UndoSet = 10
    CleanupSet = 11
    Notify = 12
    Ping = 13
    IndexAllocate = 14
    IndexDeallocate = 15
    AddAgentCaps = 16
    RemoveAgentCaps = 17
    Response = 18
}

/// A header as it was sent, with no field checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header {
    /// `h.version`.
    pub version: u8,
    /// `h.type`, a [`PduType`] if it is known.
    pub pdu_type: u8,
    /// `h.flags`.
    pub flags: Flags,
    /// `h.sessionID`.
    pub session_id: u32,
    /// `h.transactionID`.
    pub transaction_id: u32,
    /// `h.packetID`.
    pub packet_id: u32,
    /// `h.payload_length`, in bytes.
    pub payload_length: u32,
}

impl Header {
    /// Length of a header in bytes.
    pub const LEN: usize = 20;
    /// Offset of `h.payload_length`.
    pub(super) const PAYLOAD_LENGTH_AT: usize = 16;

    /// A header of this version with an empty payload.
    #[must_use]
    pub const fn new(pdu_type: PduType, order: ByteOrder) -> Self {
        Self {
            version: VERSION,
            pdu_type: pdu_type.number(),
            flags: Flags::of(order),
            session_id: 0,
            transaction_id: 0,
            packet_id: 0,
            payload_length: 0,
        }
    }

    /// Header of the response to this request (section 7.2.2): the same but for the type, without a context, and always of
    /// version 1.
    #[must_use]
    pub const fn response(&self) -> Self {
        Self {
            version: VERSION,
            pdu_type: PduType::Response.number(),
            flags: Flags::of(self.flags.byte_order()),
            payload_length: 0,
            ..*self
        }
    }

    /// The type, if it is known.
    #[must_use]
    pub const fn kind(&self) -> Option<PduType> {
        PduType::from_number(self.pdu_type)
    }

    /// Whether a response must be sent (sections 6.2.2, 6.2.9, 6.2.16): to every PDU, also of an unknown type, but for
    /// Close, CleanupSet, and Response.
    #[must_use]
    pub const fn asks_for_response(&self) -> bool {
        !matches!(self.kind(), Some(PduType::Close | PduType::CleanupSet | PduType::Response))
    }

    /// Whether the payload begins with the name of a context. A response has none. Otherwise the flag alone decides, as in
    /// net-snmp, although section 6.1.1 does not define it for CommitSet, UndoSet and CleanupSet.
    #[must_use]
    pub const fn has_context(&self) -> bool {
        self.flags.0 & Flags::NON_DEFAULT_CONTEXT != 0
            && !matches!(self.kind(), Some(PduType::Response))
    }

    pub(super) fn decode(bytes: &[u8; Self::LEN]) -> Self {
        let [version, pdu_type, flags, _, rest @ ..] = bytes;
        let flags = Flags(*flags);
        let number = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&rest[at..at + 4]);
            flags.byte_order().u32(word)
        };
        Self {
            version: *version,
            pdu_type: *pdu_type,
            flags,
            session_id: number(0),
            transaction_id: number(4),
            packet_id: number(8),
            payload_length: number(12),
        }
    }

    pub(super) fn encode(&self) -> [u8; Self::LEN] {
        let order = self.flags.byte_order();
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&[self.version, self.pdu_type, self.flags.0, 0]);
        let words = [self.session_id, self.transaction_id, self.packet_id, self.payload_length];
        for (field, word) in bytes[4..].chunks_exact_mut(4).zip(words) {
            field.copy_from_slice(&order.u32_bytes(word));
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_byte_orders_encode_the_same_header() {
        for order in [ByteOrder::Network, ByteOrder::Little] {
            let header = Header {
                session_id: 1,
                transaction_id: 0x0102_0304,
                packet_id: u32::MAX,
                payload_length: 8,
                ..Header::new(PduType::GetBulk, order)
            };
            assert_eq!(Header::decode(&header.encode()), header);
        }
        let bytes =
            Header { session_id: 7, ..Header::new(PduType::Get, ByteOrder::Network) }.encode();
        assert_eq!(bytes[..8], [1, 5, 0x10, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn every_type_has_its_number() {
        for number in 0..=u8::MAX {
            if let Some(kind) = PduType::from_number(number) {
                assert_eq!(kind.number(), number);
            } else {
                assert!(number == 0 || number > 18);
            }
        }
    }

    #[test]
    fn a_response_has_no_context() {
        let mut request = Header::new(PduType::Get, ByteOrder::Network);
        request.flags.0 |= Flags::NON_DEFAULT_CONTEXT;
        request.version = 9;
        assert_eq!(request.response(), Header::new(PduType::Response, ByteOrder::Network));
    }
}

//! PDUs that a master sends (RFC 2741 section 6.2).

use super::{
    CloseReason, DecodeError, Frame, Header, PduType, ResError, SearchRanges, VarBinds,
    cursor::Reader, header::VERSION,
};

/// A PDU with all fields checked.
#[derive(Clone, Debug)]
pub struct Pdu<'a> {
    /// The header.
    pub header: Header,
    /// Name of the context, if the header has the flag for it (section 6.1.1). An empty one is the default context.
    pub context: Option<&'a [u8]>,
    /// The rest of the payload.
    pub body: Body<'a>,
}

/// Payload of a PDU, by its type.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// Section 6.2.2.
    Close {
        /// `c.reason`.
        reason: CloseReason,
    },
    /// Section 6.2.5.
    Get {
        /// Names, as the starts of ranges.
        ranges: SearchRanges<'a>,
    },
    /// Section 6.2.6.
    GetNext {
        /// Ranges, each with one result.
        ranges: SearchRanges<'a>,
    },
    /// Section 6.2.7.
    GetBulk {
        /// `g.non_repeaters`: number of leading ranges with one result each.
        non_repeaters: u16,
        /// `g.max_repetitions`: largest number of results for each of the other ranges.
        max_repetitions: u16,
        /// All ranges.
        ranges: SearchRanges<'a>,
    },
    /// Section 6.2.8.
    TestSet {
        /// Names and their new values.
        bindings: VarBinds<'a>,
    },
    /// Section 6.2.9.
    CommitSet,
    /// Section 6.2.9.
    UndoSet,
    /// Section 6.2.9.
    CleanupSet,
    /// Section 6.2.11.
    Ping,
    /// Section 6.2.16.
    Response {
        /// `res.sysUpTime`, centiseconds.
        sys_up_time: u32,
        /// `res.error`.
        error: ResError,
        /// `res.index`: the binding or range that failed, from 1; 0 if none did.
        index: u16,
        /// The results.
        bindings: VarBinds<'a>,
    },
}

impl<'a> Pdu<'a> {
    /// Decodes `frame` and checks it to its last byte.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] for the first invalid field. Types that only subagents send are treated like unknown ones.
    pub fn decode(frame: Frame<'a>) -> Result<Self, DecodeError> {
        let header = frame.header;
        if header.version != VERSION {
            return Err(DecodeError::Version(header.version));
        }
        let unexpected = DecodeError::PduType(header.pdu_type);
        let kind = header.kind().ok_or(unexpected)?;
        let mut reader = Reader::new(frame.payload, header.flags.byte_order());
        let context = if header.has_context() { Some(reader.octet_string()?) } else { None };
        let body = match kind {
            PduType::Close => {
                let [reason, ..] = reader.array::<4>()?;
                reader.finish()?;
                Body::Close { reason: CloseReason(reason) }
            }
            PduType::Get => Body::Get { ranges: SearchRanges::decode(reader)? },
            PduType::GetNext => Body::GetNext { ranges: SearchRanges::decode(reader)? },
            PduType::GetBulk => Body::GetBulk {
                non_repeaters: reader.u16()?,
                max_repetitions: reader.u16()?,
                ranges: SearchRanges::decode(reader)?,
            },
            PduType::TestSet => Body::TestSet { bindings: VarBinds::decode(reader)? },
            PduType::CommitSet => reader.finish().map(|()| Body::CommitSet)?,
            PduType::UndoSet => reader.finish().map(|()| Body::UndoSet)?,
            PduType::CleanupSet => reader.finish().map(|()| Body::CleanupSet)?,
            PduType::Ping => reader.finish().map(|()| Body::Ping)?,
            PduType::Response => Body::Response {
                sys_up_time: reader.u32()?,
                error: ResError(reader.u16()?),
                index: reader.u16()?,
                bindings: VarBinds::decode(reader)?,
            },
            PduType::Open
            | PduType::Register
            | PduType::Unregister
            | PduType::Notify
            | PduType::IndexAllocate
            | PduType::IndexDeallocate
            | PduType::AddAgentCaps
            | PduType::RemoveAgentCaps => return Err(unexpected),
        };
        Ok(Self { header, context, body })
    }
}

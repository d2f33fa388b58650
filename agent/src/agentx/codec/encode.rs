//! Encoding of PDUs with values, directly into the output buffer (RFC 2741 sections 6.2.5 to 6.2.10 and 6.2.16).

use super::{
    Body, Header, Pdu, ResError, SearchRange, VarBind,
    cursor::{Reader, Writer},
    data,
    frame::MAX_RESPONSE,
    list::Element as _,
    oid,
};
use crate::snmp::{Oid, Value};

/// Appends one PDU to a buffer. [`finish`](Self::finish) sets the length in the header.
#[derive(Debug)]
pub struct PduWriter<'o> {
    writer: Writer<'o>,
    start: usize,
}

impl<'o> PduWriter<'o> {
    /// Begins a PDU. The context is written if `header` has the flag for it.
    #[must_use]
    pub fn new(out: &'o mut Vec<u8>, header: &Header, context: &[u8]) -> Self {
        let start = out.len();
        let mut writer = Writer::new(out, header.flags.byte_order());
        writer.bytes(&header.encode());
        if header.has_context() {
            writer.octet_string(context);
        }
        Self { writer, start }
    }

    /// Appends two 16-bit numbers, such as those of GetBulk.
    pub fn numbers(&mut self, first: u16, second: u16) {
        self.writer.u16(first);
        self.writer.u16(second);
    }

    /// Appends a range of a Get, GetNext or GetBulk.
    pub fn range(&mut self, range: &SearchRange) {
        oid::encode(&mut self.writer, &range.start, range.include);
        oid::encode(&mut self.writer, &range.end, false);
    }

    /// Appends a binding of any type.
    pub fn binding(&mut self, binding: &VarBind<'_>) {
        binding.encode(&mut self.writer);
    }

    /// Appends a binding of a type that this agent serves.
    pub fn value(&mut self, name: &Oid, value: Value<'_>) {
        data::encode_value(&mut self.writer, name, value);
    }

    /// Length of the payload so far, in bytes.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.writer.len() - self.start - Header::LEN
    }

    /// Ends the PDU.
    pub fn finish(mut self) {
        let len = u32::try_from(self.payload_len()).unwrap_or(u32::MAX);
        self.patch(Header::PAYLOAD_LENGTH_AT, len);
    }

    /// Overwrites four bytes of the PDU.
    fn patch(&mut self, at: usize, word: u32) {
        let bytes = self.writer.order().u32_bytes(word);
        let at = self.start + at;
        self.writer.buffer()[at..at + 4].copy_from_slice(&bytes);
    }

    /// Drops the payload after its first `len` bytes.
    fn truncate(&mut self, len: usize) {
        let len = self.start + Header::LEN + len;
        self.writer.buffer().truncate(len);
    }
}

/// An unfinished response: bindings are appended one by one, and [`fail`](Self::fail) drops them all.
#[derive(Debug)]
pub struct ResponseWriter<'o> {
    pdu: PduWriter<'o>,
}

/// The PDU would exceed [`MAX_RESPONSE`]; the binding was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Full;

impl<'o> ResponseWriter<'o> {
    /// `res.sysUpTime`, `res.error` and `res.index`.
    const FIXED: usize = 8;

    /// Begins the response to the request with the header `request`. `res.sysUpTime` is 0: the master sets its own.
    #[must_use]
    pub fn new(out: &'o mut Vec<u8>, request: &Header) -> Self {
        let mut pdu = PduWriter::new(out, &request.response(), &[]);
        pdu.writer.bytes(&[0; Self::FIXED]);
        Self { pdu }
    }

    /// Appends a binding of a value, copied from the view.
    pub(crate) fn value(&mut self, name: &Oid, value: Value<'_>) -> Result<(), Full> {
        self.bounded(|pdu| pdu.value(name, value))
    }

    /// Appends a binding of any type.
    pub(crate) fn binding(&mut self, binding: &VarBind<'_>) -> Result<(), Full> {
        self.bounded(|pdu| pdu.binding(binding))
    }

    fn bounded(&mut self, append: impl FnOnce(&mut PduWriter<'o>)) -> Result<(), Full> {
        let before = self.payload_len();
        append(&mut self.pdu);
        if Header::LEN + self.payload_len() > MAX_RESPONSE {
            self.pdu.truncate(before);
            return Err(Full);
        }
        Ok(())
    }

    /// Length of the payload so far, in bytes; also a mark for [`truncate`](Self::truncate).
    pub(crate) fn payload_len(&self) -> usize {
        self.pdu.payload_len()
    }

    /// Drops the bindings that were appended after the payload had `mark` bytes.
    pub(crate) fn truncate(&mut self, mark: usize) {
        self.pdu.truncate(mark.max(Self::FIXED));
    }

    /// The binding that was appended when the payload had `mark` bytes, and the mark of the one after it.
    pub(crate) fn binding_at(&mut self, mark: usize) -> Option<(VarBind<'_>, usize)> {
        let at = self.pdu.start + Header::LEN + mark;
        let order = self.pdu.writer.order();
        let mut reader = Reader::new(self.pdu.writer.buffer().get(at..)?, order);
        let binding = VarBind::decode(&mut reader).ok()?;
        Some((binding, mark + reader.offset()))
    }

    /// Ends the response with its bindings.
    pub fn finish(self) {
        self.pdu.finish();
    }

    /// Ends the response without bindings. `index` is the range or binding with the error, from 1; 0: none of them.
    pub fn fail(mut self, error: ResError, index: u16) {
        self.truncate(0);
        let order = self.pdu.writer.order();
        let at = self.pdu.start + Header::LEN + 4;
        let buffer = self.pdu.writer.buffer();
        buffer[at..at + 2].copy_from_slice(&order.u16_bytes(error.0));
        buffer[at + 2..at + 4].copy_from_slice(&order.u16_bytes(index));
        self.pdu.finish();
    }
}

impl Pdu<'_> {
    /// Appends this PDU. The result decodes to an equal PDU, but may differ in bytes: object identifiers are written in
    /// their short form, and reserved bytes as 0.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut pdu = PduWriter::new(out, &self.header, self.context.unwrap_or_default());
        match &self.body {
            Body::Close { reason } => pdu.writer.bytes(&[reason.0, 0, 0, 0]),
            Body::Get { ranges } | Body::GetNext { ranges } => {
                ranges.clone().for_each(|range| pdu.range(&range));
            }
            Body::GetBulk { non_repeaters, max_repetitions, ranges } => {
                pdu.numbers(*non_repeaters, *max_repetitions);
                ranges.clone().for_each(|range| pdu.range(&range));
            }
            Body::TestSet { bindings } => {
                bindings.clone().for_each(|binding| pdu.binding(&binding));
            }
            Body::CommitSet | Body::UndoSet | Body::CleanupSet | Body::Ping => {}
            Body::Response { sys_up_time, error, index, bindings } => {
                pdu.writer.u32(*sys_up_time);
                pdu.numbers(error.0, *index);
                bindings.clone().for_each(|binding| pdu.binding(&binding));
            }
        }
        pdu.finish();
    }
}

//! PDUs without values, built by the `agentx` crate (RFC 2741 sections 6.2.1 to 6.2.3, 6.2.11, 6.2.12).
//!
//! They are sent once a connection or once an idle interval, so the crate's allocations do not matter. The crate cannot
//! encode strings that are no UTF-8; these PDUs have none.

use std::{io, time::Duration};

use ::agentx::{encodings::ID, pdu};

use super::codec::{ByteOrder, CloseReason, Flags};
use crate::snmp::Oid;

/// The default of `r.priority` (section 6.2.3). The crate's own default is 0.
const DEFAULT_PRIORITY: u8 = 127;

/// The header fields of a PDU that this side originates.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) order: ByteOrder,
    /// 0 in Open.
    pub(super) session_id: u32,
    pub(super) packet_id: u32,
}

impl Origin {
    /// Sets the fields. A PDU outside any SNMP request is a transaction of its own.
    fn stamp(self, header: &mut pdu::Header) {
        header.flags |= Flags::of(self.order).0;
        header.session_id = self.session_id;
        header.transaction_id = self.packet_id;
        header.packet_id = self.packet_id;
    }
}

/// `o.timeout`: whole seconds from 1 to 255. 0 would mean the master's default.
fn whole_seconds(timeout: Duration) -> Duration {
    Duration::from_secs(timeout.as_secs().clamp(1, u8::MAX.into()))
}

fn id(oid: &Oid) -> io::Result<ID> {
    oid.parts().to_vec().try_into()
}

pub(super) fn open(
    origin: Origin,
    timeout: Duration,
    subagent: &Oid,
    description: &str,
) -> io::Result<Vec<u8>> {
    let mut open = pdu::Open::new(id(subagent)?, description);
    origin.stamp(&mut open.header);
    open.timeout = whole_seconds(timeout);
    open.to_bytes()
}

pub(super) fn close(origin: Origin, reason: CloseReason) -> io::Result<Vec<u8>> {
    let mut close = pdu::Close::new(match reason {
        CloseReason::PARSE_ERROR => pdu::CloseReason::ParseError,
        CloseReason::PROTOCOL_ERROR => pdu::CloseReason::ProtocolError,
        CloseReason::TIMEOUTS => pdu::CloseReason::Timeouts,
        CloseReason::SHUTDOWN => pdu::CloseReason::Shutdown,
        CloseReason::BY_MANAGER => pdu::CloseReason::ByManager,
        _ => pdu::CloseReason::Other,
    });
    origin.stamp(&mut close.header);
    close.to_bytes()
}

pub(super) fn register(origin: Origin, subtree: &Oid) -> io::Result<Vec<u8>> {
    let mut register = pdu::Register::new(id(subtree)?);
    origin.stamp(&mut register.header);
    register.priority = DEFAULT_PRIORITY;
    register.to_bytes()
}

pub(super) fn ping(origin: Origin) -> io::Result<Vec<u8>> {
    let mut ping = pdu::Ping::new();
    origin.stamp(&mut ping.header);
    ping.to_bytes()
}

pub(super) fn add_agent_caps(
    origin: Origin,
    capabilities: &Oid,
    description: &str,
) -> io::Result<Vec<u8>> {
    let mut caps = pdu::AddAgentCaps::new(id(capabilities)?, description);
    origin.stamp(&mut caps.header);
    caps.to_bytes()
}

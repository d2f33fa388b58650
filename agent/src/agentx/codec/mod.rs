//! Protocol data units as octets (RFC 2741 sections 5 and 6).
//!
//! Reading goes in three steps, each total over any octets, none of which allocates:
//!
//! 1. [`frame::split`] finds where a PDU ends. Too few octets are no error; a length that cannot be is one.
//! 2. [`Pdu::decode`] checks the whole PDU: after it, every length inside is known to hold.
//! 3. [`SearchRanges`] and [`VarBinds`] are such checked lists; walking them cannot fail.
//!
//! Only what a master sends to a subagent is decoded. The PDUs that carry values are encoded by
//! [`ResponseWriter`] and [`PduWriter`], straight into the buffer that goes to the socket; the ones without
//! values are built by the `agentx` crate (`admin_pdus.rs`).
//!
//! Nothing here knows a session, a socket or a clock.

mod cursor;
mod data;
mod decode;
mod encode;
mod error;
mod error_codes;
pub mod frame;
mod header;
mod list;
mod oid;

pub use data::{Data, VarBind, VarBinds};
pub use decode::{Body, Pdu};
pub(crate) use encode::Full;
pub use encode::{PduWriter, ResponseWriter};
pub use error::DecodeError;
pub use error_codes::{CloseReason, ResError};
pub use frame::{Frame, FrameError, Inbox};
pub use header::{ByteOrder, Flags, Header, PduType};
pub use oid::{SearchRange, SearchRanges};

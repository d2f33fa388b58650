//! Encoding and decoding of PDUs (RFC 2741 sections 5 and 6).
//!
//! Decoding takes three steps. Each accepts any bytes, and none allocates:
//!
//! 1. [`frame::split`] finds the end of a PDU. Too few bytes are no error; an invalid length is one.
//! 2. [`Pdu::decode`] checks the whole PDU, with every length inside.
//! 3. [`SearchRanges`] and [`VarBinds`] are the checked lists; iterating over them cannot fail.
//!
//! Only PDUs that a master sends are decoded. PDUs with values are encoded by [`ResponseWriter`] and [`PduWriter`], directly
//! into the socket's buffer; PDUs without values are built by the `agentx` crate (`admin_pdus.rs`).
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

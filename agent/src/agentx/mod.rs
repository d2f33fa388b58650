//! The subagent's side of AgentX (RFC 2741).
//!
//! Bottom up; each layer knows only the ones before it:
//!
//! 1. [`codec`] encodes and decodes PDUs. It knows no session.
//! 2. [`Objects`] are what a session serves. They know no protocol.
//! 3. [`Session`] opens, registers, answers and pings, with bytes and instants as input. It knows no socket, no clock and
//!    no MIB.
//! 4. [`run`] connects the session with a unix or TCP socket and a clock, and reconnects. It knows no PDU.

mod address;
mod admin_pdus;
mod backoff;
pub mod codec;
mod notice;
mod objects;
mod pending;
mod request;
mod session;
mod set;
mod state;
mod statistics;
mod timer;
mod transport;

pub use address::{Address, AddressError};
pub use notice::{Bindings, Notice};
pub use objects::{Lookup, Objects, SetError, SetFailed};
pub use session::{
    Config, DEFAULT_PING_INTERVAL, DEFAULT_TIMEOUT, Handled, NotEstablished, Session, SessionError,
};
pub use state::State;
pub use statistics::{Latency, Phase, Statistics};
pub use timer::TimerKind;
pub use transport::{DEFAULT_RECONNECT_MAX, TransportConfig, run};

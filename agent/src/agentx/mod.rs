//! The subagent's side of AgentX (RFC 2741).
//!
//! From the octets up; each layer knows only the ones before it:
//!
//! 1. [`codec`] finds PDUs in octets and writes PDUs as octets. It knows no session.
//! 2. [`Objects`] are what a session serves. They know no protocol.
//! 3. [`Session`] opens, registers, answers and pings, over octets and instants that it is given. It knows no
//!    socket, no clock and no MIB.
//! 4. [`run`] connects the session with a unix or TCP socket and with the time, and connects again
//!    when the master is gone. It knows nothing of what is in a PDU.

mod address;
mod admin_pdus;
mod backoff;
pub mod codec;
mod notice;
mod objects;
mod request;
mod session;
mod set;
mod state;
mod statistics;
mod timer;
mod transport;

pub use address::{Address, AddressError};
pub use notice::Notice;
pub use objects::{Lookup, Objects, SetError, SetFailed};
pub use session::{Config, Handled, NotEstablished, Session, SessionError};
pub use state::State;
pub use statistics::{Latency, Phase, Statistics};
pub use timer::TimerKind;
pub use transport::{TransportConfig, run};

//! States of the session with the master (RFC 2741 sections 7.1 and 7.2).

/// State of a connection and its session.
///
/// ```text
///        connected: send Open (6.2.1)
/// Disconnected ──────────────────────► Opening
///      ▲                                  │ Response: noAgentXError (7.1.1)
///      │ Response: openFailed …,          │ send Register (6.2.3)
///      │ no Response in time              ▼
///      ├───────────────────────────── Registering ◄─┐ Response: noAgentXError (7.1.4);
///      │ Response: requestDenied,         │         │ more subtrees: send the next Register
///      │ duplicateRegistration …: send    ├─────────┘
///      │ Close; no Response in time       │ Response: noAgentXError, last subtree
///      │                                  ▼
///      ├───────────────────────────── Established ◄─┐ Get, GetNext, GetBulk, TestSet … (7.2.3, 7.2.4):
///      │ Close from the master (7.1.8),   │    ▲    │ send Response
///      │ Response: notOpen,               │    ├────┘
///      │ Ping not answered in time,       │    │ any PDU
///      │ an invalid length,               │    │
///      │ too many parse errors:           ▼    │
///      └──────────────────────────────  Ping sent (7.1.11): no PDU for the ping interval
///
/// From any state: connection lost (7.1.9) → Disconnected; shutdown: send Close → Disconnected.
/// Requests are answered from Registering on: the master may send requests for each subtree that it has accepted.
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// No connection.
    Disconnected,
    /// Open has been sent.
    Opening {
        /// Its `h.packetID`.
        packet_id: u32,
    },
    /// The session is open; a Register has been sent.
    Registering {
        /// `h.sessionID`.
        session_id: u32,
        /// The Register's `h.packetID`.
        packet_id: u32,
        /// Index of the subtree, from 0.
        subtree: usize,
    },
    /// Everything is registered.
    Established {
        /// `h.sessionID`.
        session_id: u32,
        /// `h.packetID` of a Ping that has been sent, if no PDU has come since.
        ping: Option<u32>,
    },
}

impl State {
    /// `h.sessionID`, if the master has opened a session.
    #[must_use]
    pub const fn session_id(self) -> Option<u32> {
        match self {
            Self::Disconnected | Self::Opening { .. } => None,
            Self::Registering { session_id, .. } | Self::Established { session_id, .. } => {
                Some(session_id)
            }
        }
    }

    /// The PDU whose Response is pending.
    pub(super) const fn awaited(self) -> &'static str {
        match self {
            Self::Disconnected => "a connection",
            Self::Opening { .. } => "Open",
            Self::Registering { .. } => "Register",
            Self::Established { .. } => "Ping",
        }
    }
}

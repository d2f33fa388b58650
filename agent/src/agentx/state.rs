//! How far the session with the master is (RFC 2741 sections 7.1 and 7.2).

/// The states of one connection.
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
///      │ a length that cannot be,         │    │
///      │ parse errors without end:        ▼    │
///      └──────────────────────────────  Ping sent (7.1.11): nothing heard for the ping interval
///
/// From any state: connection lost (7.1.9) → Disconnected; shutdown: send Close → Disconnected.
/// Requests are answered from Registering on: each subtree is the master's to ask for once it is accepted.
/// ```
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// No connection.
    Disconnected,
    /// Open was sent.
    Opening {
        /// Its `h.packetID`.
        packet_id: u32,
    },
    /// The master gave a session; a Register was sent.
    Registering {
        /// `h.sessionID`.
        session_id: u32,
        /// The Register's `h.packetID`.
        packet_id: u32,
        /// Which of the subtrees, from 0.
        subtree: usize,
    },
    /// Everything is registered.
    Established {
        /// `h.sessionID`.
        session_id: u32,
        /// The `h.packetID` of a Ping that was sent, if nothing has been heard since.
        ping: Option<u32>,
    },
}

impl State {
    /// The session that the master gave.
    #[must_use]
    pub const fn session_id(self) -> Option<u32> {
        match self {
            Self::Disconnected | Self::Opening { .. } => None,
            Self::Registering { session_id, .. } | Self::Established { session_id, .. } => {
                Some(session_id)
            }
        }
    }

    /// The PDU that a Response is awaited to.
    pub(super) const fn awaited(self) -> &'static str {
        match self {
            Self::Disconnected => "a connection",
            Self::Opening { .. } => "Open",
            Self::Registering { .. } => "Register",
            Self::Established { .. } => "Ping",
        }
    }
}

//! The subagent's side of AgentX (RFC 2741).

mod view;

pub use view::{Lookup, View};

//! The duty of a vCPU.

use std::str::FromStr;

/// What a vCPU does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Duty {
    /// Runs without an end.
    Busy,
    /// Runs, leaves the guest, sleeps for as long as it ran.
    Half,
    /// Halts.
    Idle,
}

impl FromStr for Duty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "busy" => Ok(Self::Busy),
            "half" => Ok(Self::Half),
            "idle" => Ok(Self::Idle),
            _ => Err("busy, half or idle".to_owned()),
        }
    }
}

//! The records that the BPF programs write, as numbers. Knows no SNMP.

mod readings;
mod tracker;

pub use readings::{Readings, ThreadSlot, VmSlot};
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

//! Names of maps, programs and pins, so that neither side spells one twice.

/// Map: thread id → slot of its [`crate::ThreadRecord`], four `u16` an element.
pub const TID_SLOT: &str = "TID_SLOT";
/// Map: [`crate::ThreadRecord`].
pub const THREAD: &str = "THREAD";
/// Map: [`crate::VmRecord`].
pub const VM: &str = "VM";
/// Map: one [`crate::Meta`].
pub const META: &str = "META";
/// Map: [`crate::ImageRecord`].
pub const IMAGE: &str = "IMAGE";
/// Map: address of a request in the kernel → [`crate::InFlight`].
pub const INFLIGHT: &str = "INFLIGHT";
/// Map: how many requests are under way, by a mix of their addresses.
pub const INFLIGHT_FILTER: &str = "INFLIGHT_FILTER";
/// Map: ring of [`crate::Event`].
pub const EVENTS: &str = "EVENTS";

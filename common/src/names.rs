//! Names of the maps, which are also the names of their pins.

/// Thread id → slot of its [`crate::ThreadRecord`], four `u16` an element.
pub const TID_SLOT: &str = "TID_SLOT";
/// Slot → [`crate::ThreadRecord`].
pub const THREAD: &str = "THREAD";
/// Slot → [`crate::VmRecord`].
pub const VM: &str = "VM";
/// One [`crate::Meta`].
pub const META: &str = "META";
/// Slot → [`crate::ImageRecord`].
pub const IMAGE: &str = "IMAGE";
/// Bucket of a block device → [`crate::DeviceUser`]s.
pub const DEVICE: &str = "DEVICE";
/// Kernel address of a request → [`crate::InFlight`].
pub const INFLIGHT: &str = "INFLIGHT";
/// Hash of a request's address → number of requests in flight with that hash.
pub const INFLIGHT_FILTER: &str = "INFLIGHT_FILTER";
/// Ring of [`crate::Event`].
pub const EVENTS: &str = "EVENTS";

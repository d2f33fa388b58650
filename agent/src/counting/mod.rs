//! Has VMs, their threads and their disks counted: which process has which record, which file is which disk, and by
//! which method its requests are counted. What is to be counted is the inventory's plan; this room executes it and
//! reports back.

mod backing_files;
mod method;
mod registration;
mod self_test;
mod thread;
mod tracker;
mod vm_disks;

pub(crate) use backing_files::identity_of;
pub use registration::Registration;
pub use self_test::self_test;
pub use thread::{Command, Counting, SharedHooks};
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

//! Has VMs, their threads and their disks counted: which process has which record, which file is which disk, and by
//! which method its requests are counted.

mod backing_files;
mod disks;
mod method;
mod registration;
mod self_test;
mod tracker;

pub use disks::SharedHooks;
pub(crate) use disks::{Counted, Images};
pub use registration::Registration;
pub use self_test::self_test;
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

//! Registers VMs, their threads and their disks for counting: assigns records to processes, finds the files of disks, and
//! chooses the method that counts a file. Executes the inventory's plan and reports the result back.

mod backing_files;
mod cpu_visit;
mod free_records;
mod io_cgroup;
mod method;
mod occupancy;
mod registration;
mod self_test;
mod thread;
mod tracker;
mod vm_disks;

pub use crate::counters::{Fill, Holder};
pub(crate) use backing_files::identity_of;
pub use occupancy::Occupancy;
pub use registration::Registration;
pub use self_test::SelfTest;
pub use thread::{Command, Counting, SharedHooks};
pub use tracker::{HeldThread, RunState, Schedstat, TrackError, Tracker};

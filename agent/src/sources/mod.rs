//! Where the facts about VMs come from: [`procfs`] finds those that show themselves in the kernel, and
//! [`libvirt`] the domains of libvirt, running or not. [`host`] knows the host's network interfaces.

pub mod host;
#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod procfs;

//! Tests of the agent that need no root, no daemon and nothing else of the machine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agentx_codec;
mod agentx_session;
mod agentx_transport;
mod assembly;
mod btf;
mod command_line;
mod config_file;
mod fuzz_targets;
#[cfg(feature = "libvirt")]
mod libvirt_events;
mod mib_view;
#[path = "../second_mib/mod.rs"]
mod second_mib;
mod status_socket;
mod systemd_unit;

#[path = "../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, clippy::expect_used, reason = "a crate of its own under the fuzzer")]
mod fuzz;
use fuzz::objects;

//! QEMU without libvirt.

use std::process::{Command, Stdio};

use super::{Child, LabError};

/// Accelerator.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Accelerator {
    /// `/dev/kvm`
    Kvm,
    /// TCG, the emulator.
    Tcg,
}

/// A QEMU whose guest runs only its firmware.
#[derive(Debug)]
pub struct Qemu {
    /// Its process.
    pub child: Child,
}

impl Qemu {
    /// Starts it with 64 MiB and this name. `more` is appended to its options.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`]
    pub fn start(name: &str, accelerator: Accelerator, more: &[&str]) -> Result<Self, LabError> {
        let accelerator = match accelerator {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg",
        };
        // setpriv becomes QEMU, which then ends with the thread that started it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", accelerator]);
        command.args(["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "none"]);
        command.args(["-m", "64", "-name", &format!("{name},debug-threads=on")]).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        Ok(Self { child: Child::start(&mut command)? })
    }
}

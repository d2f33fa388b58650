//! The demo's guests: tiny ones on KVM, or QEMU's without it. Each has a disk on which its VMM makes requests.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;
use xtask::lab::{Accelerator, Child, Qemu, Qmp, TinyGuest};

/// Bytes of a disk.
const DISK: usize = 1 << 20;

/// Rounds of requests in a second that a tiny guest makes.
const ROUNDS: &str = "20";

/// Guests that run.
pub(super) enum Guests {
    Tiny { _guests: [Child; 2] },
    Qemu { guests: [(Qmp, Child); 2] },
}

impl Guests {
    /// Starts both, with their disks below `dir`.
    pub(super) fn start(dir: &Path, has_kvm: bool) -> anyhow::Result<Self> {
        if has_kvm {
            return Ok(Self::Tiny {
                _guests: [
                    tiny(dir, "busy", false, &["--duty", "busy"])?,
                    tiny(dir, "half", true, &["--vcpus", "2", "--duty", "half,idle"])?,
                ],
            });
        }
        Ok(Self::Qemu { guests: [qemu(dir, "busy", false)?, qemu(dir, "half", true)?] })
    }

    /// Has QEMU make a round of requests on each disk. Tiny guests make theirs by themselves.
    pub(super) fn request(&mut self) -> anyhow::Result<()> {
        let Self::Qemu { guests: [(busy, _), (half, _)] } = self else { return Ok(()) };
        busy.request(DRIVE, "read 0 4k")?;
        busy.request(DRIVE, "write 0 16k")?;
        Ok(half.request(DRIVE, "read 0 4k")?)
    }
}

/// Name of each guest's only drive.
const DRIVE: &str = "rootfs";

fn disk(dir: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = dir.join(format!("{name}.img"));
    fs::write(&path, vec![0; DISK])?;
    Ok(path)
}

/// A tiny guest with Firecracker's name, options and configuration file: that is how the agent finds the disk.
fn tiny(dir: &Path, name: &str, is_read_only: bool, options: &[&str]) -> anyhow::Result<Child> {
    let config = json!({"drives": [{
        "drive_id": DRIVE,
        "path_on_host": disk(dir, name)?,
        "is_root_device": true,
        "is_read_only": is_read_only,
    }]});
    let path = dir.join(format!("{name}.json")).display().to_string();
    fs::write(&path, config.to_string())?;
    let common = ["--id", name, "--config-file", &path, "--requests", ROUNDS];
    Ok(TinyGuest::start_as("firecracker", &[&common, options].concat())?.into_child())
}

fn qemu(dir: &Path, name: &str, is_read_only: bool) -> anyhow::Result<(Qmp, Child)> {
    let socket = dir.join(format!("{name}.qmp"));
    let monitor = format!("unix:{},server=on,wait=off", socket.display());
    let disk = disk(dir, name)?;
    let is_direct = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&disk).is_ok();
    let drive = format!(
        "file={},format=raw,if=none,id={DRIVE},cache={},readonly={}",
        disk.display(),
        if is_direct { "none" } else { "writeback" },
        if is_read_only { "on" } else { "off" },
    );
    let guest = Qemu::start(name, Accelerator::Tcg, &["-qmp", &monitor, "-drive", &drive])?;
    Ok((Qmp::connect(&socket)?, guest.child))
}

//! Guests that boot a Debian kernel with an initramfs made by a test.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use tempfile::TempDir;

use super::{Child, LabError, cache, find};

/// Modules for disks and filesystems, and for running guests in the guest. Missing ones are built into the kernel.
const MODULES: [&str; 19] = [
    "crc16",
    "crc32c-intel",
    "crc32c_generic",
    "ext4",
    "irqbypass",
    "jbd2",
    "kvm",
    "kvm-amd",
    "libcrc32c",
    "loop",
    "mbcache",
    "scsi_common",
    "scsi_mod",
    "virtio",
    "virtio_blk",
    "virtio_pci",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_ring",
];

/// Start of the init script of every guest. Modules depend on each other, so loading all by name is repeated.
const BEGIN: &str = "#!/bin/busybox sh
export PATH=/bin:/sbin HOME=/
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
for round in 1 2 3 4 5; do
  for module in /modules/*.ko; do insmod $module 2>/dev/null && rm $module; done
done
";

/// A kernel that `cargo xtask setup` has fetched.
#[derive(Clone, Debug)]
pub struct DebianKernel {
    /// Such as `6.1.0-56-cloud-amd64`.
    pub release: String,
    dir: PathBuf,
}

impl DebianKernel {
    /// Directory of the kernels, each in a directory named after its release.
    #[must_use]
    pub fn place() -> Option<PathBuf> {
        Some(cache()?.join("kernels"))
    }

    /// The kernels that were fetched, oldest first.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let dirs = Self::place().and_then(|place| fs::read_dir(place).ok());
        let mut all: Vec<Self> = dirs
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| Self {
                release: entry.file_name().to_string_lossy().into_owned(),
                dir: entry.path(),
            })
            .filter(|kernel| kernel.image().exists())
            .collect();
        all.sort_by_key(|kernel| kernel.version());
        all
    }

    /// The first two numbers of its release.
    #[must_use]
    pub fn version(&self) -> (u32, u32) {
        let mut numbers = self.release.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    }

    /// The file to boot.
    #[must_use]
    pub fn image(&self) -> PathBuf {
        self.dir.join(format!("boot/vmlinuz-{}", self.release))
    }

    fn module(&self, name: &str) -> Option<PathBuf> {
        let found = Command::new("find")
            .arg(self.dir.join("lib/modules"))
            .args(["-name", &format!("{name}.ko"), "-o", "-name", &format!("{name}.ko.xz")])
            .output()
            .ok()?;
        String::from_utf8_lossy(&found.stdout).lines().next().map(PathBuf::from)
    }

    /// Boots it without KVM, and waits until the guest powers off. Returns its console output.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn run(
        &self,
        initramfs: &Path,
        disk: Option<&Path>,
        limit: Duration,
    ) -> Result<String, LabError> {
        let said = initramfs.with_extension("said");
        let file = |path: PathBuf| move |source| LabError::File { path, source };
        let output = fs::File::create(&said).map_err(file(said.clone()))?;
        // By another name: to an agent of another test it is no VM.
        let program = initramfs.with_extension("guest");
        let qemu = find("qemu-system-x86_64").unwrap_or_else(|| "qemu-system-x86_64".into());
        symlink(qemu, &program).map_err(file(program.clone()))?;
        let mut command = Command::new("setpriv");
        // One thread for both vCPUs: kernels that patch their own code while another vCPU runs it crash at times under TCG.
        command.args(["--pdeathsig", "KILL"]).arg(&program);
        command.args(["-accel", "tcg,thread=single"]);
        command.args(["-cpu", "max", "-smp", "2", "-m", "2048", "-nodefaults", "-no-reboot"]);
        command.args(["-display", "none", "-serial", "stdio", "-append", Self::COMMAND_LINE]);
        command.arg("-kernel").arg(self.image()).arg("-initrd").arg(initramfs);
        if let Some(disk) = disk {
            let drive = format!("file={},format=raw,if=virtio,cache=unsafe", disk.display());
            command.args(["-drive", &drive]);
        }
        let errors = output.try_clone().map_err(file(said.clone()))?;
        let mut guest = Child::start(command.stdin(Stdio::null()).stdout(output).stderr(errors))?;
        let ended = guest.wait(limit);
        let said = fs::read(&said).map_err(file(said))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        ended.map(|_| said.clone()).map_err(|error| LabError::Failed {
            program: format!("A guest with Linux {}", self.release),
            said: format!("{error}: {said}"),
        })
    }

    /// For guests with a serial line. The time stamp counter is as good as the host's clock, and read in a tenth of the time.
    /// `no_timer_check`: at boot, Linux counts the ticks of its timer within a loop of fixed length and panics at too
    /// few; the vCPU may wait for a CPU of the host meanwhile (`timer_irq_works` in arch/x86/kernel/apic/io_apic.c).
    pub const COMMAND_LINE: &str =
        "console=ttyS0 quiet panic=-1 no_timer_check tsc=reliable clocksource=tsc mitigations=off";
}

/// The initramfs of a guest.
#[derive(Debug)]
pub struct Initramfs {
    dir: TempDir,
    root: PathBuf,
}

impl Initramfs {
    /// Creates one with busybox, the tools for loop devices, and the modules of a kernel.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn of(kernel: &DebianKernel) -> Result<Self, LabError> {
        let failed = |source| LabError::File { path: env::temp_dir(), source };
        let dir = tempfile::tempdir().map_err(failed)?;
        let files = Self { root: dir.path().join("root"), dir };
        for name in ["bin", "sbin", "modules", "lib/x86_64-linux-gnu"] {
            let path = files.root.join(name);
            fs::create_dir_all(&path).map_err(|source| LabError::File { path, source })?;
        }
        let lib64 = files.root.join("lib64");
        symlink("lib/x86_64-linux-gnu", &lib64)
            .map_err(|source| LabError::File { path: lib64, source })?;
        files.add(Path::new("/bin/busybox"), "bin/busybox")?;
        files.add_program(Path::new("/sbin/losetup"), "sbin")?;
        for module in MODULES.iter().filter_map(|name| kernel.module(name)) {
            let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.add(&module, &format!("modules/{name}"))?;
            if name.ends_with(".xz") {
                done(
                    Command::new("busybox")
                        .args(["unxz"])
                        .arg(files.root.join("modules").join(name)),
                )?;
            }
        }
        Ok(files)
    }

    /// Copies a file to a place in the guest.
    ///
    /// # Errors
    ///
    /// [`LabError::File`]
    pub fn add(&self, file: &Path, place: &str) -> Result<(), LabError> {
        fs::copy(file, self.root.join(place))
            .map(drop)
            .map_err(|source| LabError::File { path: file.to_owned(), source })
    }

    /// Copies a program, without debug information, and its shared libraries into a directory of the guest.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn add_program(&self, program: &Path, dir: &str) -> Result<(), LabError> {
        let place = self.root.join(dir).join(program.file_name().unwrap_or_default());
        done(Command::new("strip").arg("--strip-debug").arg("-o").arg(place).arg(program))?;
        let libraries = Command::new("ldd").arg(program).output();
        let libraries = libraries
            .map_err(|source| LabError::Start { program: "ldd".to_owned(), source })?
            .stdout;
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`
        for word in String::from_utf8_lossy(&libraries).split_whitespace() {
            if let Some(name) = word.strip_prefix('/').and_then(|path| path.rsplit('/').next()) {
                self.add(Path::new(word), &format!("lib/x86_64-linux-gnu/{name}"))?;
            }
        }
        Ok(())
    }

    /// Packs all into one file. The guest runs the script and powers off.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn pack(&self, script: &str) -> Result<PathBuf, LabError> {
        let init = self.root.join("init");
        let file = |path: PathBuf| move |source| LabError::File { path, source };
        fs::write(&init, format!("{BEGIN}{script}\npoweroff -f\n")).map_err(file(init.clone()))?;
        done(Command::new("chmod").arg("755").arg(&init))?;
        let packed = self.dir.path().join("initramfs");
        let pack = format!("find . | busybox cpio -o -H newc > '{}' 2>/dev/null", packed.display());
        done(Command::new("sh").args(["-c", &pack]).current_dir(&self.root))?;
        Ok(packed)
    }
}

fn done(command: &mut Command) -> Result<(), LabError> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            Err(LabError::Failed { program, said })
        }
        Err(source) => Err(LabError::Start { program, source }),
    }
}

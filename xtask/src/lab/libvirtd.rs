//! A private libvirt daemon.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{
    process::{Pid, Signal, kill_process},
    thread::{CpuSet, sched_getaffinity},
};

use super::{Child, LabError, PATIENCE, cache, find, wait_until};

/// The directories of the system's daemon, each replaced by a private one.
const DIRS: [&str; 5] =
    ["/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/lib/libvirt", "/var/log/libvirt"];

/// In the command line of each QEMU that libvirtd starts.
const MONITORS: &[u8] = b"/var/lib/libvirt/qemu/domain-";

/// A program of libvirt that has the driver of QEMU.
#[derive(Clone, Copy, Debug)]
struct Daemon {
    program: &'static str,
    /// Its read-write socket; the read-only one has `-ro` at the end.
    socket: &'static str,
}

/// All of them. A host has one of both; where it has both, the first is used.
const DAEMONS: [Daemon; 2] = [
    Daemon { program: "libvirtd", socket: "libvirt-sock" },
    // Of modular daemons. Those for networks, storage pools and secrets it needs only for domains that name some.
    Daemon { program: "virtqemud", socket: "virtqemud-sock" },
];

/// Name of the program that [`Libvirtd`] starts; `None` = it is not installed.
#[must_use]
pub fn libvirt_program() -> Option<&'static str> {
    installed().map(|daemon| daemon.program)
}

fn installed() -> Option<Daemon> {
    DAEMONS.into_iter().find(|daemon| find(daemon.program).is_some())
}

/// A running libvirtd or virtqemud in a mount namespace of its own, with QEMU as root. Its domains outlive the daemon;
/// domains that run when this is dropped are destroyed.
#[derive(Debug)]
pub struct Libvirtd {
    daemon: Daemon,
    dir: PathBuf,
    /// Its host name.
    host: Option<String>,
    child: Option<Child>,
}

impl Libvirtd {
    /// Starts it with all its files below `dir`, and waits until it responds.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start(dir: &Path) -> Result<Self, LabError> {
        Self::start_on(dir, None)
    }

    /// The same with another host name, so that domains can be migrated to it.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn start_as(dir: &Path, host: &str) -> Result<Self, LabError> {
        Self::start_on(dir, Some(host))
    }

    fn start_on(dir: &Path, host: Option<&str>) -> Result<Self, LabError> {
        let daemon = installed().unwrap_or(DAEMONS[0]);
        let file = |path: PathBuf| move |source| LabError::File { path, source };
        for name in DIRS {
            let path = own(dir, name);
            fs::create_dir_all(&path).map_err(file(path))?;
        }
        if let Some(shared) = cache().map(|cache| cache.join("libvirt-capabilities")) {
            // What each QEMU can do: finding it out takes seconds. libvirt checks that it still holds, by cpuid among others,
            // which tells the number of the CPU, too: all daemons run on one. Their domains do not.
            let qemu = own(dir, "/var/cache/libvirt").join("qemu");
            for dir in [&shared, &qemu] {
                fs::create_dir_all(dir).map_err(file(dir.clone()))?;
            }
            let link = qemu.join("capabilities");
            symlink(shared, &link).map_err(file(link))?;
        }
        let etc = own(dir, "/etc/libvirt");
        let mut options =
            "auth_unix_ro = \"none\"\nauth_unix_rw = \"none\"\nunix_sock_ro_perms = \"0777\"\n"
                .to_owned();
        if let Some(host) = host {
            // A host UUID of its own.
            let of_name =
                host.bytes().fold(0_u64, |sum, octet| sum.wrapping_mul(31) + u64::from(octet));
            options.push_str(&format!(
                "host_uuid = \"0c0c0c0c-0000-4000-8000-{:012x}\"\n",
                of_name & 0xffff_ffff_ffff
            ));
        }
        for (name, text) in [
            (&*format!("{}.conf", daemon.program), &*options),
            (
                "qemu.conf",
                "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\nstdio_handler = \"file\"\n\
                 cgroup_controllers = []\nnamespaces = []\nremember_owner = 0\n",
            ),
        ] {
            let path = etc.join(name);
            fs::write(&path, text).map_err(file(path))?;
        }
        let mut libvirtd =
            Self { daemon, dir: dir.to_owned(), host: host.map(str::to_owned), child: None };
        libvirtd.begin()?;
        Ok(libvirtd)
    }

    /// Starts it after [`end`](Self::end), as it was.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn begin(&mut self) -> Result<(), LabError> {
        let mut script: String = DIRS
            .iter()
            .map(|name| {
                let own = own(&self.dir, name);
                // A host without libvirt has no such directory.
                format!("mkdir -p {name} && mount --bind '{}' {name} && ", own.display())
            })
            .collect();
        if let Some(host) = &self.host {
            script.push_str(&format!("hostname {host} && "));
        }
        let program = self.daemon.program;
        script.push_str(&format!(
            "exec {program} --config /etc/libvirt/{program}.conf --pid-file /run/libvirt/{program}.pid"
        ));
        let path = self.dir.join("libvirtd.log");
        let log = fs::File::create(&path).map_err(|source| LabError::File { path, source })?;
        let mut command = Command::new("taskset");
        command.args(["--cpu-list", &first_cpu().to_string(), "unshare"]);
        command.args(self.host.is_some().then_some("--uts")).args([
            "--mount",
            "--propagation",
            "private",
            "setpriv",
            "--pdeathsig",
            "KILL",
            "sh",
            "-c",
            &script,
        ]);
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.child = Some(Child::start(&mut command)?);
        let mut said = String::new();
        let mut answer =
            || self.virsh(&["-q", "list"]).map_err(|error| said = error.to_string()).ok();
        wait_until(PATIENCE, &format!("{program} answers"), &mut answer).map(drop).map_err(|_| {
            let log = fs::read_to_string(self.dir.join("libvirtd.log")).unwrap_or_default();
            LabError::Failed { program: program.to_owned(), said: format!("{said}\n{log}") }
        })
    }

    /// Kills it (SIGKILL). Its domains keep running.
    pub fn end(&mut self) {
        self.child = None;
    }

    /// Its process, while it runs.
    #[must_use]
    pub const fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// URI of the read-only socket.
    #[must_use]
    pub fn uri_read_only(&self) -> String {
        self.uri(&format!("{}-ro", self.daemon.socket))
    }

    /// URI of the read-write socket.
    #[must_use]
    pub fn uri_read_write(&self) -> String {
        self.uri(self.daemon.socket)
    }

    /// Directory with the process ids of running domains, in files `NAME.pid`.
    #[must_use]
    pub fn pid_dir(&self) -> PathBuf {
        own(&self.dir, "/run/libvirt").join("qemu")
    }

    /// The process id of a running domain of this name.
    #[must_use]
    pub fn pid(&self, name: &str) -> Option<u32> {
        let text = fs::read_to_string(self.pid_dir().join(format!("{name}.pid"))).ok()?;
        text.trim().parse().ok()
    }

    /// Runs virsh against it. Returns its output.
    ///
    /// # Errors
    ///
    /// [`LabError::Failed`] with its error message.
    pub fn virsh(&self, arguments: &[&str]) -> Result<String, LabError> {
        let output = Command::new("virsh")
            .args(["-c", &self.uri_read_write()])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .map_err(|source| LabError::Start { program: "virsh".to_owned(), source })?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(LabError::Failed {
                program: format!("virsh {}", arguments.join(" ")),
                said,
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Defines a domain, without starting it.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn define(&self, xml: &str) -> Result<(), LabError> {
        self.with_xml("define", xml)
    }

    /// Starts a transient domain.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn create(&self, xml: &str) -> Result<(), LabError> {
        self.with_xml("create", xml)
    }

    fn with_xml(&self, command: &str, xml: &str) -> Result<(), LabError> {
        let path = self.dir.join("domain.xml");
        fs::write(&path, xml).map_err(|source| LabError::File { path: path.clone(), source })?;
        self.virsh(&["-q", command, &path.to_string_lossy()]).map(drop)
    }

    fn uri(&self, socket: &str) -> String {
        let socket = own(&self.dir, "/run/libvirt").join(socket);
        format!("qemu:///system?socket={}", socket.display())
    }
}

/// The first CPU that this process may use.
fn first_cpu() -> usize {
    let allowed = sched_getaffinity(None).unwrap_or_default();
    (0..CpuSet::MAX_CPU).find(|&cpu| allowed.is_set(cpu)).unwrap_or(0)
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        let files = fs::read_dir(self.pid_dir()).into_iter().flatten().flatten();
        let pids =
            files.filter_map(|file| fs::read_to_string(file.path()).ok()?.trim().parse().ok());
        let is_its = |pid: &i32| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            // The path of its monitor's socket is in it.
            command.windows(MONITORS.len()).any(|part| part == MONITORS)
        };
        // Killed at once: libvirt ends one after the other, each in seconds.
        for domain in pids.filter(is_its).filter_map(Pid::from_raw) {
            // Fails if the domain has ended meanwhile.
            let _ = kill_process(domain, Signal::KILL);
        }
        if self.child.as_ref().is_some_and(|child| child.go_on().is_ok()) {
            // What it has made for the domains on the host, such as interfaces, it removes itself.
            let is_empty =
                || self.virsh(&["-q", "list"]).map_or(true, |list| list.trim().is_empty());
            let _ = wait_until(PATIENCE, "libvirtd has no domains", || is_empty().then_some(()));
        }
    }
}

fn own(dir: &Path, name: &str) -> PathBuf {
    dir.join(name.trim_start_matches('/').replace('/', "-"))
}

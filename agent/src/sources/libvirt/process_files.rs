//! The files in which libvirt's drivers keep the processes of their domains: `NAME.pid` and the status `NAME.xml` in the
//! driver's state directory (virQEMUDriverConfigNew() in src/qemu/qemu_conf.c, virCHDriverConfigNew() in src/ch/ch_conf.c).
//! Only libvirt, or for a session the user, can write there.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, statat},
    io::Errno,
};

use super::address::Address;
use crate::inventory::{DomainProcess, Machine, VmUuid};

/// Where the daemons of the system have their directories.
const RUN: &str = "/run/libvirt";

/// The name that a driver takes for its own file; a domain of this name has none.
const DRIVER: &str = "driver";

/// Names of the daemons, as the kernel shows them.
const DAEMONS: [&str; 3] = ["libvirtd", "virtqemud", "virtchd"];

/// Bytes that are read of a file: a number, or the first element of a status.
const MAX_LEN: u64 = 4096;

/// Bytes of a status up to the end of its job: the features of QEMU, and a line for each vCPU, come before it.
const MAX_JOB_PLACE: u64 = 256 << 10;

/// Most bytes of a whole status; longer ones are cut off, and not understood then.
const MAX_STATUS_LEN: u64 = 4 << 20;

/// The files of one connection.
#[derive(Debug)]
pub(super) struct ProcessFiles {
    driver: String,
    /// The state directory; `None` = the driver has none that is known here.
    dir: Option<PathBuf>,
    /// The daemon's socket, where the URI names it.
    socket: Option<PathBuf>,
    /// The domains are those of the system's own daemon; another one numbers its domains, too.
    is_system: bool,
}

impl ProcessFiles {
    /// The files of the driver that a URI leads to.
    pub(super) fn of(uri: &str) -> Self {
        let address = Address::of(uri);
        let runtime = || {
            let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
            let cache = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
            Some(runtime.or_else(cache)?.join("libvirt"))
        };
        let driver = address.driver;
        let socket = address.parameter("socket").map(PathBuf::from);
        let of_socket = || Some(socket.as_ref()?.parent()?.to_owned());
        let dir = match (driver, address.path) {
            ("qemu" | "ch", _) if !address.is_local() => None,
            ("qemu" | "ch", "/system") => {
                Some(of_socket().unwrap_or_else(|| RUN.into()).join(driver))
            }
            ("qemu" | "ch", "/session") => {
                of_socket().or_else(runtime).map(|dir| dir.join(driver).join("run"))
            }
            ("qemu", "/embed") => {
                address.parameter("root").map(|root| Path::new(root).join("run/qemu"))
            }
            _ => None,
        };
        let is_system = address.is_local() && address.path == "/system" && socket.is_none();
        let socket = socket.filter(|_| address.is_local());
        Self { driver: driver.to_owned(), dir, socket, is_system }
    }

    /// The user whose daemon the connection leads to, and who can have it report anything; `None` = root, or the daemon runs on
    /// another host. Asks the filesystems of the socket and the state directory.
    pub(super) fn user(&self) -> Option<u32> {
        let places = self.socket.iter().chain(&self.dir).filter(|_| !self.is_system);
        let mut owners = places.filter_map(|path| rustix::fs::stat(path).ok()).peekable();
        if owners.peek().is_none() && (self.socket.is_some() || self.dir.is_some()) {
            // The session of the agent's own user, which has not run a domain yet.
            let own = rustix::process::geteuid().as_raw();
            return Some(own).filter(|user| *user != 0 && !self.is_system);
        }
        owners.map(|stat| stat.st_uid).find(|user| *user != 0)
    }

    /// The driver's state directory, if it is known.
    pub(super) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// The control group of a domain that runs with this number.
    pub(super) fn machine(&self, id: Option<u32>) -> Option<Machine> {
        let id = id.filter(|_| self.is_system)?;
        Some(Machine { driver: self.driver.clone(), id })
    }

    /// The process of a domain. Does not block: the directories are in memory, and nothing but regular files is read.
    pub(super) fn process(&self, name: &str, is_active: bool) -> DomainProcess {
        let Some(dir) = &self.dir else { return DomainProcess::Untold };
        match Directory::open(dir, Path::new("/proc")) {
            // A domain that is off may have a file of its last run.
            Some(dir) if is_active => dir.process(name, self.driver == "qemu"),
            Some(dir) if dir.is_in_use() => DomainProcess::None,
            _ => DomainProcess::Untold,
        }
    }

    /// Whether the status of a running domain says that it is migrated to another host. Does not block, as [`Self::process`].
    pub(super) fn is_migrating_away(&self, name: &str) -> bool {
        let open = |dir: &PathBuf| Directory::open(dir, Path::new("/proc"));
        let dir = self.dir.as_ref().and_then(open);
        let text = dir.and_then(|dir| dir.read_up_to(&format!("{name}.xml"), MAX_JOB_PLACE).ok());
        text.is_some_and(|text| is_migration_away(&String::from_utf8_lossy(&text)))
    }

    /// The status of a running domain, if it is there and may be read. Does not block, as [`Self::process`].
    pub(super) fn status(&self, name: &str, uuid: VmUuid) -> Option<String> {
        Directory::open(self.dir.as_ref()?, Path::new("/proc"))?.status(name, uuid)
    }
}

/// A state directory that nothing but its owner can write.
struct Directory<'a> {
    dir: OwnedFd,
    owner: u32,
    proc_root: &'a Path,
}

impl<'a> Directory<'a> {
    fn open(path: &Path, proc_root: &'a Path) -> Option<Self> {
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(path, how, Mode::empty()).ok()?;
        let stat = fstat(&dir).ok()?;
        let found = Self { dir, owner: stat.st_uid, proc_root };
        (is_private(&stat) && found.daemon_is_here()).then_some(found)
    }

    /// Whether the ids in the files are those of this PID namespace, as far as the file of the daemon tells.
    fn daemon_is_here(&self) -> bool {
        let Ok(text) = self.read(&format!("{DRIVER}.pid")) else { return true };
        let comm = number(&text).map(|pid| self.proc_root.join(pid.to_string()).join("comm"));
        let comm = comm.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        DAEMONS.iter().any(|name| comm.trim_ascii_end() == name.as_bytes())
    }

    /// Whether the driver has locked the directory: then the process of each domain is in it.
    fn is_in_use(&self) -> bool {
        statat(&self.dir, format!("{DRIVER}.pid"), AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// `writes_files`: the driver writes a file for each domain.
    fn process(&self, name: &str, writes_files: bool) -> DomainProcess {
        if name.contains(['/', '\0']) {
            return DomainProcess::Untold;
        }
        let file = |end| {
            if name == DRIVER {
                Err(Errno::NOENT.into())
            } else {
                self.read(&format!("{name}{end}"))
            }
        };
        let pid = match file(".pid") {
            Ok(text) => number(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match self.read(&format!("{name}.xml")) {
                    Ok(text) => number_in_status(&text),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        let is_none = writes_files && self.is_in_use();
                        return if is_none { DomainProcess::None } else { DomainProcess::Untold };
                    }
                    Err(_) => None,
                }
            }
            Err(_) => None,
        };
        let pid = pid.filter(|pid| self.owner == 0 || self.is_of_owner(*pid));
        pid.map_or(DomainProcess::Untold, DomainProcess::Pid)
    }

    /// Whether a process is the owner's: a user may write the id of every process into files of the own session.
    fn is_of_owner(&self, pid: u32) -> bool {
        rustix::fs::stat(self.proc_root.join(pid.to_string()))
            .is_ok_and(|stat| stat.st_uid == self.owner)
    }

    fn status(&self, name: &str, uuid: VmUuid) -> Option<String> {
        let name = Some(name).filter(|name| !name.contains(['/', '\0']))?;
        let text = self.read_up_to(&format!("{name}.xml"), MAX_STATUS_LEN).ok()?;
        let text = String::from_utf8(text).ok()?;
        // Another domain may have taken the name.
        text.contains(&format!("<uuid>{uuid}</uuid>")).then_some(text)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.read_up_to(name, MAX_LEN)
    }

    fn read_up_to(&self, name: &str, max_len: u64) -> io::Result<Vec<u8>> {
        let how =
            OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(&self.dir, name, how, Mode::empty())?;
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        if !is_file || !is_private(&stat) || stat.st_uid != self.owner {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut content = Vec::new();
        File::from(file).take(max_len).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// Whether the job in a domain's status (qemuDomainObjPrivateXMLFormatJob() in src/qemu/qemu_domainjob.c) is an outgoing
/// migration: `<job type='none' async='migration out' phase='perform3'>`.
fn is_migration_away(status: &str) -> bool {
    // What the domain's own XML contains says nothing.
    let before = status.split_once("<domain ").map_or(status, |(before, _)| before);
    let job = before.rsplit_once("<job ").and_then(|(_, job)| job.split_once('>'));
    job.is_some_and(|(attributes, _)| attributes.contains("async='migration out'"))
}

/// Whether neither group nor others can write.
const fn is_private(stat: &Stat) -> bool {
    stat.st_mode & 0o022 == 0
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok().filter(|&pid| pid > 0)
}

/// The process id in a domain's status: `<domstatus state='running' reason='booted' pid='4711'>`.
fn number_in_status(text: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(text);
    let (_, element) = text.split_once("<domstatus ")?;
    let (attributes, _) = element.split_once('>')?;
    let value = attributes.split_once(" pid=").map(|(_, value)| value)?;
    let quote = value.chars().next().filter(|quote| matches!(quote, '\'' | '"'))?;
    number(value[1..].split(quote).next()?.as_bytes())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    fn dir_of(uri: &str) -> Option<String> {
        ProcessFiles::of(uri).dir.map(|dir| dir.to_str().unwrap().to_owned())
    }

    #[test]
    fn each_driver_has_a_directory_of_its_own() {
        for (uri, dir) in [
            ("qemu:///system", Some("/run/libvirt/qemu")),
            ("ch:///system", Some("/run/libvirt/ch")),
            (
                "qemu+unix:///system?socket=/srv/libvirt/virtqemud-sock-ro",
                Some("/srv/libvirt/qemu"),
            ),
            (
                "qemu:///session?socket=/run/user/1000/libvirt/libvirt-sock&no_tty=1",
                Some("/run/user/1000/libvirt/qemu/run"),
            ),
            ("qemu:///embed?root=/srv/root", Some("/srv/root/run/qemu")),
            ("qemu+ssh://host/system", None),
            ("qemu://host/system", None),
            ("test:///default", None),
            ("xen:///system", None),
            ("", None),
        ] {
            assert_eq!(dir_of(uri).as_deref(), dir, "{uri}");
        }
        let machine = |uri: &str| ProcessFiles::of(uri).machine(Some(3));
        assert_eq!(machine("ch:///system"), Some(Machine { driver: "ch".to_owned(), id: 3 }));
        assert_eq!(machine("qemu:///session"), None);
        assert_eq!(machine("qemu:///system?socket=/srv/libvirt-sock"), None);
        assert_eq!(machine("qemu+ssh://host/system"), None);
    }

    #[test]
    fn a_process_is_what_only_libvirt_could_write() {
        use DomainProcess::{None, Pid, Untold};
        let (state, proc_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let put = |name: &str, text: &str| {
            let path = state.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        };
        for pid in [1, 4711, 4712] {
            fs::create_dir(proc_root.path().join(pid.to_string())).unwrap();
        }
        fs::write(proc_root.path().join("1/comm"), "virtqemud\n").unwrap();
        let process = |name: &str| {
            Directory::open(state.path(), proc_root.path()).map(|dir| dir.process(name, true))
        };
        assert_eq!(process("web"), Some(Untold), "the driver may have another directory");
        put("driver.pid", "1");
        assert_eq!(process("web"), Some(None));
        put(
            "web.xml",
            "<!--\nWARNING\n-->\n\n<domstatus state='running' reason='booted' pid='4712'>\n<x pid='1'/>",
        );
        assert_eq!(process("web"), Some(Pid(4712)));
        put("web.pid", "4711\n");
        assert_eq!(process("web"), Some(Pid(4711)));
        assert_eq!(process("driver"), Some(None), "that file is the driver's");
        assert_eq!(process("../web"), Some(Untold));
        // Of what others could write nothing is believed.
        let mode = |name: &str, mode: u32| {
            fs::set_permissions(state.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        mode("web.pid", 0o666);
        assert_eq!(process("web"), Some(Untold));
        put("web.pid", "x");
        assert_eq!(process("web"), Some(Untold));
        symlink("web.xml", state.path().join("link.pid")).unwrap();
        assert_eq!(process("link"), Some(Untold));
        rustix::fs::mkfifoat(rustix::fs::CWD, state.path().join("fifo.pid"), Mode::RUSR).unwrap();
        assert_eq!(process("fifo"), Some(Untold));
        fs::write(proc_root.path().join("1/comm"), "sh\n").unwrap();
        assert_eq!(process("web"), Option::None, "a daemon in another PID namespace");
        fs::write(proc_root.path().join("1/comm"), "libvirtd\n").unwrap();
        fs::set_permissions(state.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert_eq!(process("web"), Option::None);
    }

    #[test]
    fn the_job_of_a_status() {
        let status = |job: &str| {
            format!("<domstatus state='running'>\n  <vcpus/>\n  {job}\n  <domain type='kvm'>")
        };
        let is_away = |job: &str| is_migration_away(&status(job));
        assert!(is_away("<job type='none' async='migration out' phase='perform3' flags='0x1'>"));
        assert!(is_away("<job type='query' async='migration out' phase='none'/>"));
        assert!(!is_away("<job type='none' async='save' phase='none'/>"));
        assert!(!is_away("<job type='none' async='migration in' phase='finish3'/>"));
        assert!(!is_away(""));
        let own = "<title>&lt;</title><job async='migration out'/>";
        assert!(!is_migration_away(&format!("{}{own}", status(""))));
    }

    #[test]
    fn the_status_of_a_domain_is_its_own() {
        let (state, proc_root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let uuid = "2f5bd8a2-6c1c-4a3b-9d0e-0123456789ab";
        let text = format!("<domstatus><domain><uuid>{uuid}</uuid></domain></domstatus>");
        fs::write(state.path().join("web.xml"), &text).unwrap();
        let status = |name: &str, uuid: &str| {
            let dir = Directory::open(state.path(), proc_root.path()).unwrap();
            dir.status(name, VmUuid::parse(uuid).unwrap())
        };
        assert_eq!(status("web", uuid), Some(text.clone()));
        assert_eq!(status("web", "00000000-6c1c-4a3b-9d0e-0123456789ab"), None);
        assert_eq!(status("../web", uuid), None);
        assert_eq!(status("db", uuid), None);
    }

    #[test]
    fn a_daemon_is_that_of_the_owner_of_its_socket_and_directory() {
        let root = tempfile::tempdir().unwrap();
        let own = Some(rustix::process::geteuid().as_raw()).filter(|user| *user != 0);
        let files = |kind: &str, socket: &Path| {
            ProcessFiles::of(&format!("qemu+unix:///{kind}?socket={}", socket.display()))
        };
        let socket = root.path().join("virtqemud-sock");
        fs::write(&socket, "").unwrap();
        assert_eq!(files("system", &socket).user(), own);
        fs::create_dir(root.path().join("qemu")).unwrap();
        assert_eq!(files("session", &socket).user(), own);
        if own.is_none() {
            let give = |path: &Path| std::os::unix::fs::chown(path, Some(1000), None).unwrap();
            give(&root.path().join("qemu"));
            assert_eq!(files("system", &socket).user(), Some(1000), "others write its files");
            fs::remove_dir(root.path().join("qemu")).unwrap();
            give(&socket);
            assert_eq!(files("session", &socket).user(), Some(1000));
        }
        for of_root in
            ["qemu:///system", "qemu+ssh://host/system", "test:///default", "xen:///system"]
        {
            assert_eq!(ProcessFiles::of(of_root).user(), None, "{of_root}");
        }
    }

    #[test]
    fn no_status_panics() {
        for text in [
            "",
            "<domstatus",
            "<domstatus pid=>",
            "<domstatus x pid=>",
            "<domstatus x pid='é",
            "<domstatus a pid='9999999999999'>",
        ] {
            assert_eq!(number_in_status(text.as_bytes()), None, "{text}");
        }
    }
}

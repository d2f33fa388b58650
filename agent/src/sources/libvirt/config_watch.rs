//! What libvirt tells no event of, seen in the files that its daemon on this host keeps: which domains start with the
//! host, what a domain will have at its next start, and whether its memory waits in a file.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, WatchFlags};

/// Where the QEMU driver keeps descriptions, links to those of domains that start with the host, and memory
/// (virQEMUDriverConfigNew() in src/qemu/qemu_conf.c).
const CONFIG: &str = "/etc/libvirt/qemu";
const AUTOSTART: &str = "autostart";
const SAVE: &str = "/var/lib/libvirt/qemu/save";

/// What has changed.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ConfigChange {
    /// Which domains start with the host.
    AutoStart,
    /// Something about the domain of this name.
    Domain(String),
}

/// A look-out for files that come and go.
#[derive(Debug)]
pub(super) struct ConfigWatch {
    fd: OwnedFd,
    config: PathBuf,
    of_config: i32,
    of_save: Option<i32>,
}

impl ConfigWatch {
    /// Looks out for the files of libvirt on this host; `None` where a URI means another driver or host, or where
    /// there are none yet.
    pub(super) fn of(uri: &str) -> Option<Self> {
        let is_here = uri.starts_with("qemu:///system");
        is_here.then(|| Self::in_dirs(Path::new(CONFIG), Path::new(SAVE)).ok()).flatten()
    }

    fn in_dirs(config: &Path, save: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let of_config = watch(&fd, config)?;
        let of_save = watch(&fd, save).ok();
        // Until it is there, the directory around it tells of it.
        let _ = watch(&fd, &config.join(AUTOSTART));
        Ok(Self { fd, config: config.to_owned(), of_config, of_save })
    }

    /// Waits for changes.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub(super) fn wait(&self) -> io::Result<Vec<ConfigChange>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut changes = Vec::new();
        // What has come together is told together.
        while changes.is_empty() || !reader.is_buffer_empty() {
            let event = reader.next()?;
            let name = event.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if event.wd() == self.of_config {
                if name == AUTOSTART {
                    let _ = watch(&self.fd, &self.config.join(AUTOSTART));
                    changes.push(ConfigChange::AutoStart);
                }
                changes.extend(name.strip_suffix(".xml").map(domain));
            } else if Some(event.wd()) == self.of_save {
                changes.extend(name.strip_suffix(".save").map(domain));
            } else {
                changes.push(ConfigChange::AutoStart);
            }
        }
        changes.sort_unstable();
        changes.dedup();
        Ok(changes)
    }
}

fn watch(fd: &OwnedFd, dir: &Path) -> io::Result<i32> {
    // libvirt writes a new file and gives it the name of the old one.
    let change = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MOVED_FROM
        | WatchFlags::MOVED_TO
        | WatchFlags::ONLYDIR;
    Ok(inotify::add_watch(fd, dir, change)?)
}

fn domain(name: &str) -> ConfigChange {
    ConfigChange::Domain(name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn files_are_seen_from_the_first_on() {
        let root = tempfile::tempdir().unwrap();
        let (config, save) = (root.path().join("qemu"), root.path().join("save"));
        fs::create_dir(&config).unwrap();
        fs::create_dir(&save).unwrap();
        let files = ConfigWatch::in_dirs(&config, &save).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || while files.wait().is_ok_and(|all| sender.send(all).is_ok()) {});
        let seen = |what: &str, change: ConfigChange| {
            let all = receiver.recv_timeout(Duration::from_secs(20)).unwrap();
            assert_eq!(all, [change], "{what}");
        };
        let autostart = config.join("autostart");
        fs::create_dir(&autostart).unwrap();
        seen("the directory of links", ConfigChange::AutoStart);
        symlink("/nowhere", autostart.join("web.xml")).unwrap();
        seen("a link", ConfigChange::AutoStart);
        fs::remove_file(autostart.join("web.xml")).unwrap();
        seen("its removal", ConfigChange::AutoStart);
        // Somebody else's file tells nothing.
        fs::write(config.join("web.xml.new"), "").unwrap();
        fs::rename(config.join("web.xml.new"), config.join("web.xml")).unwrap();
        seen("a description", domain("web"));
        fs::write(save.join("db.save"), "").unwrap();
        seen("saved memory", domain("db"));
        fs::remove_file(save.join("db.save")).unwrap();
        seen("its removal", domain("db"));
        assert!(receiver.try_recv().is_err(), "and nothing else");
    }
}

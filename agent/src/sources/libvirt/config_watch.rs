//! Watches the files of the local libvirt daemon for changes without an event: autostart, the persistent configuration, and
//! managed saves.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, WatchFlags};

/// Directories of the QEMU driver (virQEMUDriverConfigNew() in src/qemu/qemu_conf.c): domains' configurations, links to those
/// that start with the host, and managed saves.
const CONFIG: &str = "/etc/libvirt/qemu";
const AUTOSTART: &str = "autostart";
const SAVE: &str = "/var/lib/libvirt/qemu/save";

/// A change of libvirt's files.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ConfigChange {
    /// The set of domains that start with the host.
    AutoStart,
    /// The configuration or the managed save of the domain with this name.
    Domain(String),
}

/// An inotify instance on libvirt's directories.
#[derive(Debug)]
pub(super) struct ConfigWatch {
    fd: OwnedFd,
    config: PathBuf,
    /// Watch descriptor of `config`.
    config_wd: i32,
    /// Watch descriptor of the directory of managed saves, if it exists.
    save_wd: Option<i32>,
}

impl ConfigWatch {
    /// Watches the files of a local QEMU driver. `None`: the URI is of another driver or host, or the configuration directory
    /// does not exist yet.
    pub(super) fn of(uri: &str) -> Option<Self> {
        let is_here = uri.starts_with("qemu:///system");
        is_here.then(|| Self::in_dirs(Path::new(CONFIG), Path::new(SAVE)).ok()).flatten()
    }

    fn in_dirs(config: &Path, save: &Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let config_wd = watch(&fd, config)?;
        let save_wd = watch(&fd, save).ok();
        // If it does not exist yet, the watch of its parent reports its creation.
        let _ = watch(&fd, &config.join(AUTOSTART));
        Ok(Self { fd, config: config.to_owned(), config_wd, save_wd })
    }

    /// Blocks until there are changes; each is returned once.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub(super) fn wait(&self) -> io::Result<Vec<ConfigChange>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut changes = Vec::new();
        while changes.is_empty() || !reader.is_buffer_empty() {
            let event = reader.next()?;
            let name = event.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if event.wd() == self.config_wd {
                if name == AUTOSTART {
                    let _ = watch(&self.fd, &self.config.join(AUTOSTART));
                    changes.push(ConfigChange::AutoStart);
                }
                changes.extend(name.strip_suffix(".xml").map(domain));
            } else if Some(event.wd()) == self.save_wd {
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
    // libvirt replaces a file by writing a new one and renaming it.
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
    fn changes_of_files_are_reported() {
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
        // A file with another suffix is ignored.
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

//! Watches the files of the local libvirt daemon for changes without an event: autostart, the persistent configuration, managed
//! saves, and jobs in the status of running domains.

use std::{
    collections::BTreeMap,
    io,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use rustix::fs::inotify::{self, ReadFlags, WatchFlags};

/// Directories of the QEMU driver (virQEMUDriverConfigNew() in src/qemu/qemu_conf.c): domains' configurations, links to those
/// that start with the host, and managed saves.
const CONFIG: &str = "/etc/libvirt/qemu";
const AUTOSTART: &str = "autostart";
const SAVE: &str = "/var/lib/libvirt/qemu/save";

/// A change of libvirt's files.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum ConfigChange {
    /// Any file may have changed: changes were lost, or a directory was removed and made again.
    All,
    /// The set of domains that start with the host.
    AutoStart,
    /// The configuration or the managed save of the domain with this name.
    Domain(String),
    /// The status of the running domain with this name.
    Status(String),
}

/// A directory that is watched, and that may be removed and made again.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Subject {
    Config,
    AutoStart,
    Save,
    /// The statuses of running domains.
    State,
    /// A directory that contains one of the others: which of them come and go.
    Above,
}

/// An inotify instance on libvirt's directories.
#[derive(Debug)]
pub(super) struct ConfigWatch {
    fd: OwnedFd,
    config: PathBuf,
    save: PathBuf,
    /// The driver's state directory, if it is known.
    state: Option<PathBuf>,
    /// By watch descriptor.
    watched: BTreeMap<i32, Subject>,
}

impl ConfigWatch {
    /// Watches the files of a local QEMU driver. `None`: the URI is of another driver or host, or the configuration directory
    /// does not exist yet. `state`: the driver's state directory.
    pub(super) fn of(uri: &str, state: Option<&Path>) -> Option<Self> {
        let is_here = uri.starts_with("qemu:///system");
        is_here.then(|| Self::in_dirs(Path::new(CONFIG), Path::new(SAVE), state).ok()).flatten()
    }

    fn in_dirs(config: &Path, save: &Path, state: Option<&Path>) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let (config, save) = (config.to_owned(), save.to_owned());
        let state = state.map(Path::to_owned);
        let mut watch = Self { fd, config, save, state, watched: BTreeMap::new() };
        watch.watch_all();
        match watch.watched.values().any(|subject| *subject == Subject::Config) {
            true => Ok(watch),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Watches the directories that are there. The watch of a directory that is watched already stays as it is.
    fn watch_all(&mut self) {
        let state = self.state.as_deref();
        let above = [self.config.parent(), self.save.parent(), state.and_then(Path::parent)];
        let above = above.into_iter().flatten().map(|dir| (dir.to_owned(), Subject::Above));
        let own = [
            (self.config.clone(), Subject::Config),
            (self.config.join(AUTOSTART), Subject::AutoStart),
            (self.save.clone(), Subject::Save),
        ];
        let own = own.into_iter().chain(state.map(|dir| (dir.to_owned(), Subject::State)));
        // One that is missing is seen in the directory above when it is made. Those above come first: what is made after that is seen.
        for (dir, subject) in above.chain(own) {
            let Ok(wd) = watch(&self.fd, &dir) else { continue };
            let is_old = |of: &i32, is: &mut Subject| {
                *of != wd && *is == subject && subject != Subject::Above
            };
            // A directory that was here has another name now.
            for (old, _) in self.watched.extract_if(.., is_old) {
                let _ = inotify::remove_watch(&self.fd, old);
            }
            self.watched.insert(wd, subject);
        }
    }

    /// Blocks until there are changes; each is returned once.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub(super) fn wait(&mut self) -> io::Result<Vec<ConfigChange>> {
        let (mut changes, mut is_stale) = (Vec::new(), false);
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        while changes.is_empty() || !reader.is_buffer_empty() {
            let event = reader.next()?;
            let name = event.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
            if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
                is_stale = true;
                changes.push(ConfigChange::All);
                continue;
            }
            let subject = self.watched.get(&event.wd()).copied();
            if event.events().contains(ReadFlags::IGNORED) {
                // The directory was removed, or is watched no more.
                if self.watched.remove(&event.wd()).is_some() {
                    is_stale = true;
                    changes.push(ConfigChange::All);
                }
                continue;
            }
            match subject {
                Some(Subject::Config) if name == AUTOSTART => {
                    is_stale = true;
                    changes.push(ConfigChange::AutoStart);
                }
                Some(Subject::Config) => changes.extend(name.strip_suffix(".xml").map(domain)),
                Some(Subject::Save) => changes.extend(name.strip_suffix(".save").map(domain)),
                // A status that is removed is that of a domain that has ended.
                Some(Subject::State) if event.events().contains(ReadFlags::MOVED_TO) => {
                    let name = name.strip_suffix(".xml").map(str::to_owned);
                    changes.extend(name.map(ConfigChange::Status));
                }
                Some(Subject::AutoStart) => changes.push(ConfigChange::AutoStart),
                Some(Subject::Above) => {
                    let is_named = |dir: &Path| dir.file_name().is_some_and(|own| own == &*name);
                    let is_state = self.state.as_deref().is_some_and(is_named);
                    if is_named(&self.config) || is_named(&self.save) || is_state {
                        is_stale = true;
                        changes.push(ConfigChange::All);
                    }
                }
                Some(Subject::State) | None => {}
            }
        }
        if is_stale {
            self.watch_all();
        }
        changes.sort_unstable();
        changes.dedup();
        if changes.first() == Some(&ConfigChange::All) {
            changes.truncate(1);
        }
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
    use std::{
        collections::BTreeSet, fs, os::unix::fs::symlink, sync::mpsc, thread, time::Duration,
    };

    use super::*;

    #[test]
    fn changes_of_files_are_reported() {
        let root = tempfile::tempdir().unwrap();
        let [config, save, state] = ["qemu", "save", "run"].map(|name| root.path().join(name));
        for dir in [&config, &save, &state] {
            fs::create_dir(dir).unwrap();
        }
        let mut files = ConfigWatch::in_dirs(&config, &save, Some(&state)).unwrap();
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
        fs::write(state.join("web.xml.new"), "").unwrap();
        fs::rename(state.join("web.xml.new"), state.join("web.xml")).unwrap();
        seen("a status", ConfigChange::Status("web".to_owned()));
        fs::remove_file(state.join("web.xml")).unwrap();
        fs::write(state.join("web.pid"), "").unwrap();
        assert!(receiver.try_recv().is_err(), "and nothing else");
        // Directories that are removed and made again: what is between two states is of no interest.
        let wait_for = |what: &str, change: ConfigChange| loop {
            let all = receiver.recv_timeout(Duration::from_secs(20)).expect(what);
            if all.contains(&change) {
                break;
            }
        };
        fs::remove_dir_all(&config).unwrap();
        wait_for("the directory is gone", ConfigChange::All);
        fs::create_dir(&config).unwrap();
        wait_for("it is there again", ConfigChange::All);
        fs::rename(&save, root.path().join("old")).unwrap();
        wait_for("another directory takes the place", ConfigChange::All);
        fs::create_dir(&save).unwrap();
        wait_for("of the saved memory", ConfigChange::All);
        // The watches are added again between two writes.
        for (path, change) in
            [(config.join("web.xml"), domain("web")), (save.join("db.save"), domain("db"))]
        {
            let is_seen = |_: &u32| {
                fs::write(&path, "").unwrap();
                fs::remove_file(&path).unwrap();
                let all = receiver.recv_timeout(Duration::from_millis(100));
                all.is_ok_and(|all| all.contains(&change))
            };
            assert!((0..200).find(is_seen).is_some(), "{path:?}");
        }
    }

    #[test]
    fn changes_that_the_kernel_had_no_room_for_are_all() {
        let root = tempfile::tempdir().unwrap();
        let (config, save) = (root.path().join("qemu"), root.path().join("save"));
        fs::create_dir(&config).unwrap();
        let mut files = ConfigWatch::in_dirs(&config, &save, None).unwrap();
        let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
        let limit: usize = limit.trim().parse().unwrap();
        // Two equal events in a row are one.
        for i in 0..limit / 2 + 2 {
            let path = config.join(format!("{}.xml", i % 2));
            fs::write(&path, "").unwrap();
            fs::remove_file(&path).unwrap();
        }
        let mut all = BTreeSet::new();
        while !all.contains(&ConfigChange::All) {
            all.extend(files.wait().unwrap());
        }
    }
}

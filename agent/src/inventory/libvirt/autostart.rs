//! The moment at which a domain is marked to start with the host, of which libvirt tells no event: its daemon keeps
//! a link for each such domain in a directory.

use std::{io, mem::MaybeUninit, os::fd::OwnedFd, path::Path};

use rustix::fs::inotify::{self, WatchFlags};

/// Where the QEMU driver of this host keeps the links (virQEMUDriverConfigNew() in src/qemu/qemu_conf.c).
const DIR: &str = "/etc/libvirt/qemu/autostart";

/// A look-out for links that come and go.
#[derive(Debug)]
pub(super) struct Links<'a> {
    fd: OwnedFd,
    dir: &'a Path,
    /// The watch on the directory in which `dir` appears with the first link.
    parent: i32,
}

impl Links<'static> {
    /// Looks out for the links of libvirt on this host; `None` where a URI means another driver or host, or where
    /// the directory cannot be read.
    pub(super) fn of(uri: &str) -> Option<Self> {
        uri.starts_with("qemu:///system").then(|| Links::in_dir(Path::new(DIR)).ok()).flatten()
    }
}

impl<'a> Links<'a> {
    fn in_dir(dir: &'a Path) -> io::Result<Self> {
        let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
        let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let parent = inotify::add_watch(&fd, dir.parent().unwrap_or(dir), appears)?;
        let links = Self { fd, dir, parent };
        links.watch();
        Ok(links)
    }

    /// Watches the links; where there are none yet, their directory is waited for.
    fn watch(&self) {
        let change = WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ONLYDIR;
        let _ = inotify::add_watch(&self.fd, self.dir, change);
    }

    /// Waits until links, or their directory, have come or gone.
    ///
    /// # Errors
    ///
    /// Those of read(2).
    pub(super) fn wait(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.fd, &mut buffer);
        let mut changed = false;
        // What has come together is one change.
        while !changed || !reader.is_buffer_empty() {
            let event = reader.next()?;
            if event.wd() != self.parent {
                changed = true;
            } else if event.file_name().map(|name| name.to_bytes())
                == self.dir.file_name().map(|name| name.as_encoded_bytes())
            {
                self.watch();
                changed = true;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn links_are_seen_from_the_first_on() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("autostart");
        let of_thread = dir.clone();
        let (sender, receiver) = mpsc::channel();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            let links = Links::in_dir(&of_thread).unwrap();
            ready.send(()).unwrap();
            while links.wait().is_ok() && sender.send(()).is_ok() {}
        });
        is_ready.recv().unwrap();
        let seen = || receiver.recv_timeout(Duration::from_secs(20)).is_ok();
        fs::create_dir(&dir).unwrap();
        assert!(seen(), "the directory");
        symlink("/nowhere", dir.join("web.xml")).unwrap();
        assert!(seen(), "a link");
        // Beside the directory, domains are defined.
        fs::write(root.path().join("db.xml"), "").unwrap();
        fs::remove_file(dir.join("web.xml")).unwrap();
        assert!(seen(), "its removal");
        assert!(receiver.try_recv().is_err(), "and nothing else");
    }
}

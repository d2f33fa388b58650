//! The file with the indexes, in `state.dir`. It is written on a thread of its own, off the way of an event.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write as _},
    path::{Path, PathBuf},
    thread::JoinHandle,
};

use crossbeam_channel::{Receiver, Sender};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;

use crate::inventory::{BadIndex, SavedIndexes};

/// The file in `state.dir`.
const FILE: &str = "indexes.json";

/// Version of the file.
const FORMAT: u32 = 1;

/// What tells one boot of the host from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The file as it is written. A later version may add fields, which this one leaves out.
#[derive(Debug, Deserialize, Serialize)]
struct Saved {
    format: u32,
    boot_id: String,
    #[serde(flatten)]
    indexes: SavedIndexes,
}

#[derive(Debug, Error)]
enum BrokenFile {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, this kvmeter knows {FORMAT}")]
    Format(u32),
    #[error(transparent)]
    Index(#[from] BadIndex),
}

/// Where the indexes are kept.
#[derive(Clone, Debug)]
pub(super) struct IndexFile {
    dir: PathBuf,
    boot_id: String,
}

impl IndexFile {
    pub(super) fn new(dir: &Path) -> Self {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self { dir: dir.to_owned(), boot_id }
    }

    /// What an earlier agent has given since the host booted. A file that is not understood is set aside, and all
    /// VMs get new indexes.
    pub(super) fn load(&self) -> SavedIndexes {
        let path = self.dir.join(FILE);
        match fs::read(&path) {
            Ok(bytes) => self.read(&bytes).unwrap_or_else(|error| {
                set_aside(&path, &error);
                SavedIndexes::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => SavedIndexes::default(),
            Err(error) => {
                warn!("Cannot read {}: {error}; VMs may get other indexes", path.display());
                SavedIndexes::default()
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> Result<SavedIndexes, BrokenFile> {
        let saved: Saved = serde_json::from_slice(bytes)?;
        if saved.format != FORMAT {
            return Err(BrokenFile::Format(saved.format));
        }
        if saved.boot_id != self.boot_id {
            return Ok(SavedIndexes::default());
        }
        saved.indexes.check()?;
        Ok(saved.indexes)
    }

    /// Writes the file. A crash at any moment leaves the old file or the new one.
    fn write(&self, indexes: SavedIndexes) -> io::Result<()> {
        let saved = Saved { format: FORMAT, boot_id: self.boot_id.clone(), indexes };
        fs::create_dir_all(&self.dir)?;
        let unfinished = self.dir.join("indexes.json.new");
        let mut file = BufWriter::new(File::create(&unfinished)?);
        serde_json::to_writer_pretty(&mut file, &saved)?;
        file.write_all(b"\n")?;
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        fs::rename(&unfinished, self.dir.join(FILE))?;
        File::open(&self.dir)?.sync_all()
    }

    /// Starts the thread that writes. It ends, with the last indexes written, when the sender is dropped.
    ///
    /// # Errors
    ///
    /// When a thread cannot be started.
    pub(super) fn writer(self) -> io::Result<(Sender<SavedIndexes>, JoinHandle<()>)> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let write = move || self.write_all(&receiver);
        let thread = std::thread::Builder::new().name("index file".to_owned()).spawn(write)?;
        Ok((sender, thread))
    }

    fn write_all(&self, receiver: &Receiver<SavedIndexes>) {
        let mut has_failed = false;
        while let Ok(first) = receiver.recv() {
            // Only the newest is of use.
            let newest = receiver.try_iter().last().unwrap_or(first);
            match self.write(newest) {
                Ok(()) => has_failed = false,
                Err(error) if !has_failed => {
                    has_failed = true;
                    warn!(
                        "Cannot write {}: {error}; VMs may get other indexes when kvmeter starts again",
                        self.dir.join(FILE).display()
                    );
                }
                Err(_) => {}
            }
        }
    }
}

fn set_aside(path: &Path, error: &BrokenFile) {
    let aside = path.with_extension("json.broken");
    let done = match fs::rename(path, &aside) {
        Ok(()) => format!("it is kept as {}", aside.display()),
        Err(error) => format!("it cannot be set aside: {error}"),
    };
    warn!("{} is not understood ({error}); VMs get new indexes, and {done}", path.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"{"format":1,"boot_id":"boot","vms":{
        "01010101-0101-0101-0101-010101010101":{"index":3,"disks":{"vda":2}}}}"#;

    /// The same with a VM that is its process.
    fn with_process(index: u32) -> String {
        let process = format!(
            r#""processes":[{{"pid":7,"start_ticks":9,"index":{index},"nics":{{"a":1}}}}],"vms":"#
        );
        SAVED.replace("\"vms\":", &process)
    }

    fn file(dir: &Path, boot_id: &str) -> IndexFile {
        IndexFile { dir: dir.to_owned(), boot_id: boot_id.to_owned() }
    }

    #[test]
    fn what_is_written_is_read_until_the_host_boots() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), SAVED).unwrap();
        let without_process = file(dir.path(), "boot").load();
        assert_ne!(without_process, SavedIndexes::default());
        fs::write(dir.path().join(FILE), with_process(4)).unwrap();
        let saved = file(dir.path(), "boot").load();
        assert_ne!(saved, without_process);
        let (sender, thread) = file(dir.path(), "boot").writer().unwrap();
        sender.send(SavedIndexes::default()).unwrap();
        sender.send(saved.clone()).unwrap();
        drop(sender);
        thread.join().unwrap();
        assert_eq!(file(dir.path(), "boot").load(), saved);
        assert_eq!(file(dir.path(), "another").load(), SavedIndexes::default());
    }

    #[test]
    fn fields_of_a_later_version_are_left_out() {
        let [now, later] = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        fs::write(now.path().join(FILE), SAVED).unwrap();
        let more = SAVED
            .replace("\"index\":3,", "\"index\":3,\"ports\":{\"a\":1},")
            .replace("\"format\":1,", "\"format\":1,\"written_by\":\"9.9\",");
        assert_ne!(more, SAVED);
        fs::write(later.path().join(FILE), more).unwrap();
        let [now, later] = [now, later].map(|dir| file(dir.path(), "boot").load());
        assert_eq!(now, later);
        assert_ne!(later, SavedIndexes::default());
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let twice =
            SAVED.replace("}}}}", "}},\"02020202-0202-0202-0202-020202020202\":{\"index\":3}}}");
        let of_process = with_process(3);
        let broken = ["", "\u{feff}", "{\"format\":2}", &twice, &of_process].map(str::to_owned);
        let cut = (1..SAVED.len()).map(|len| SAVED[..len].to_owned());
        for text in broken.into_iter().chain(cut) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), &text).unwrap();
            assert_eq!(file(dir.path(), "boot").load(), SavedIndexes::default(), "{text}");
            assert_eq!(fs::read_to_string(dir.path().join("indexes.json.broken")).unwrap(), text);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_nothing_but_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let no_dir = dir.path().join("file");
        fs::write(&no_dir, "").unwrap();
        assert_eq!(file(&no_dir, "boot").load(), SavedIndexes::default());
        let (sender, thread) = file(&no_dir, "boot").writer().unwrap();
        sender.send(SavedIndexes::default()).unwrap();
        drop(sender);
        thread.join().unwrap();
    }
}

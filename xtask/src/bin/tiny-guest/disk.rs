//! The disks of the VM, and the requests that the VMM makes on them.

use std::{
    fs::{File, OpenOptions},
    io,
    num::NonZeroU32,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use memmap2::MmapMut;
use serde::Deserialize;

/// Bytes of a read.
const READ: usize = 4 << 10;

/// Bytes of a write.
const WRITE: usize = 16 << 10;

/// The part of Firecracker's configuration file that says which disks the VM has (docs/getting-started.md in
/// Firecracker's sources).
#[derive(Debug, Deserialize)]
pub(crate) struct Config {
    drives: Vec<Drive>,
}

#[derive(Debug, Deserialize)]
struct Drive {
    path_on_host: PathBuf,
    is_read_only: bool,
}

impl Config {
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("{} is not there", path.display()))?;
        serde_json::from_reader(file)
            .with_context(|| format!("{} is no configuration", path.display()))
    }

    pub(crate) fn open(&self) -> anyhow::Result<Vec<Disk>> {
        self.drives.iter().map(Disk::open).collect()
    }
}

/// An open image.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    size: u64,
    is_read_only: bool,
    /// Starts at a page, as direct I/O needs it.
    buffer: MmapMut,
}

impl Disk {
    fn open(drive: &Drive) -> anyhow::Result<Self> {
        let path = drive.path_on_host.display();
        let mut buffer = MmapMut::map_anon(WRITE)?;
        let file = open_direct(drive, &mut buffer)
            .or_else(|_| options(drive).open(&drive.path_on_host))
            .with_context(|| format!("the disk {path} cannot be opened"))?;
        let size = file.metadata()?.len();
        if size < u64::try_from(WRITE)? {
            bail!("the disk {path} is smaller than a request");
        }
        Ok(Self { file, size, is_read_only: drive.is_read_only, buffer })
    }

    /// Makes `per_second` rounds of requests, each a read and, unless the disk is read-only, a write, until one fails.
    pub(crate) fn serve(mut self, per_second: NonZeroU32) {
        let pause = Duration::from_secs(1) / per_second.get();
        let mut next = Instant::now();
        let (mut read_at, mut write_at) = (0, 0);
        loop {
            if let Err(error) = self.round(&mut read_at, &mut write_at) {
                eprintln!("A disk ends: {error}");
                return;
            }
            next += pause;
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }

    fn round(&mut self, read_at: &mut u64, write_at: &mut u64) -> io::Result<()> {
        self.file.read_exact_at(&mut self.buffer[..READ], *read_at)?;
        *read_at = self.after(*read_at, READ);
        if !self.is_read_only {
            self.file.write_all_at(&self.buffer[..WRITE], *write_at)?;
            *write_at = self.after(*write_at, WRITE);
        }
        Ok(())
    }

    /// The position after a request of `length` bytes at `at`: from the end of the disk it goes on at its beginning.
    fn after(&self, at: u64, length: usize) -> u64 {
        let length = u64::try_from(length).unwrap_or(0);
        if at + 2 * length <= self.size { at + length } else { 0 }
    }
}

fn options(drive: &Drive) -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(!drive.is_read_only);
    options
}

/// Opens an image past the page cache. Some filesystems refuse the first request, and not the open.
fn open_direct(drive: &Drive, buffer: &mut [u8]) -> io::Result<File> {
    let file = options(drive).custom_flags(libc::O_DIRECT).open(&drive.path_on_host)?;
    file.read_exact_at(&mut buffer[..READ], 0)?;
    Ok(file)
}

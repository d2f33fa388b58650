//! A file on a file server that does not answer when the file is closed.

#![expect(clippy::host_endian_bytes, reason = "FUSE is spoken with the host's own kernel")]

use std::{
    ffi::CString,
    fs::File,
    io::{Read as _, Write as _},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::LabError;

/// Operations of `linux/fuse.h`.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

/// Largest request: a write of 128 KiB and its header.
const MAX_REQUEST: usize = 132 << 10;

/// Node ids of the directory and of the file.
const ROOT: u64 = 1;
const FILE: u64 = 2;

/// A FUSE file system with one file. What closes the file waits until this is dropped.
#[derive(Debug)]
pub struct HungFile {
    dir: PathBuf,
    /// Ends when the file system is unmounted.
    server: Option<JoinHandle<()>>,
    /// The connection: without it, all requests fail.
    device: Option<File>,
}

impl HungFile {
    /// Mounts the file system on this directory.
    ///
    /// # Errors
    ///
    /// [`LabError::File`]
    pub fn mount(dir: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::File { path: dir.to_owned(), source };
        let device = File::options().read(true).write(true).open("/dev/fuse").map_err(failed)?;
        let options =
            format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let options = CString::new(options).map_err(|error| failed(error.into()))?;
        mount("hung", dir, "fuse", MountFlags::empty(), options.as_c_str())
            .map_err(|error| failed(error.into()))?;
        let mut hung = Self { dir: dir.to_owned(), server: None, device: Some(device) };
        let of_thread = hung.device.as_ref().map(File::try_clone).transpose().map_err(failed)?;
        let serve = move || of_thread.into_iter().for_each(|device| serve(&device));
        hung.server = Some(thread::spawn(serve));
        Ok(hung)
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join("file")
    }
}

impl Drop for HungFile {
    fn drop(&mut self) {
        // Requests that wait for an answer fail once the connection is aborted, which a forced unmount does.
        let _ = unmount(&self.dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
        self.device = None;
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Answers all requests but those of close(2), until the connection is aborted.
fn serve(mut device: &File) {
    let mut request = vec![0; MAX_REQUEST];
    while let Ok(len) = device.read(&mut request) {
        // struct fuse_in_header: length, operation, number, node, and others
        let word = |at: usize| request.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        let long = |at: usize| request.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        let (Some(operation), Some(number), Some(node), true) =
            (word(4), long(8), long(16), len >= 40)
        else {
            return;
        };
        let [number, node] = [number, node].map(u64::from_ne_bytes);
        let answer = match u32::from_ne_bytes(operation) {
            FLUSH | FORGET | INTERRUPT => continue,
            INIT => Some(init()),
            LOOKUP => Some([longs(&[FILE, 0, 1000, 1000, 0]), attributes(FILE)].concat()),
            GETATTR => Some([longs(&[1000, 0]), attributes(node)].concat()),
            OPEN => Some(longs(&[1, 0])),
            _ => None,
        };
        // struct fuse_out_header: length, error, number
        let error = if answer.is_some() { 0 } else { -libc::ENOSYS };
        let body = answer.unwrap_or_default();
        let len = u32::try_from(16 + body.len()).unwrap_or(16);
        let header = [&len.to_ne_bytes()[..], &error.to_ne_bytes(), &number.to_ne_bytes()].concat();
        if device.write_all(&[header, body].concat()).is_err() {
            return;
        }
    }
}

/// struct fuse_init_out of version 7.31.
fn init() -> Vec<u8> {
    // Version, read-ahead, flags; most requests in the background (12) and when they are too many (10); largest write,
    // granularity of times in ns, largest number of pages.
    let words = [7, 31, 65_536, 0, 10 << 16 | 12, 65_536, 1, 1];
    let mut bytes: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    bytes.resize(64, 0);
    bytes
}

/// struct fuse_attr.
fn attributes(node: u64) -> Vec<u8> {
    let mode: u32 = if node == ROOT { 0o40_755 } else { 0o100_644 };
    let mut bytes = longs(&[node, 0, 0, 0, 0, 0]);
    // Three times in ns, mode, links, owner, group, device, block size, flags.
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    bytes.extend(words.into_iter().flat_map(u32::to_ne_bytes));
    bytes
}

fn longs(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_ne_bytes()).collect()
}

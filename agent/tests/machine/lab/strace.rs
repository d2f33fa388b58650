//! Counts the requests of a process on its disks with strace, as an independent reference.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, wait_until};

/// System calls that read and write at a position in a file.
const CALLS: &str = "pread64,preadv,preadv2,pwrite64,pwritev,pwritev2,io_submit";

/// strace on all threads of a process.
pub(crate) struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    pub(crate) fn of(pid: u32, dir: &Path) -> Self {
        let log = dir.join("strace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-qq", "-v", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"]);
        strace.arg(&log).args(["-p", &pid.to_string()]).stderr(Stdio::null());
        let child = Child::start(&mut strace).unwrap();
        wait_until(PATIENCE, "strace holds every thread", || {
            let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            let is_held = |status: String| !status.contains("TracerPid:\t0");
            let mut statuses =
                tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
            statuses.all(is_held).then_some(())
        })
        .unwrap();
        Self { child, log }
    }

    /// Reads, writes, bytes read and bytes written so far of each file, by the end of its path. Without calls that move
    /// nothing. For io_submit(2), the requested bytes.
    pub(crate) fn counts(&self, of: &[&str]) -> BTreeMap<String, [u64; 4]> {
        let mut counts = BTreeMap::new();
        let mut note = |file: &str, is_write: bool, octets: u64| {
            if let Some(name) = of.iter().find(|name| file.ends_with(**name)) {
                let counts: &mut [u64; 4] = counts.entry((*name).to_owned()).or_default();
                counts[usize::from(is_write)] += 1;
                counts[usize::from(is_write) + 2] += octets;
            }
        };
        let mut unfinished: BTreeMap<String, String> = BTreeMap::new();
        for line in fs::read_to_string(&self.log).unwrap().lines() {
            let (thread, text) = line.split_once(' ').unwrap();
            let text = text.trim_start();
            // `preadv(… <unfinished ...>` and `<... preadv resumed>…) = 4096`
            let whole = if let Some(begin) = text.strip_suffix("<unfinished ...>") {
                unfinished.insert(thread.to_owned(), begin.to_owned());
                continue;
            } else if text.starts_with("<...") {
                format!("{}{text}", unfinished.remove(thread).unwrap_or_default())
            } else {
                text.to_owned()
            };
            let Some(result) =
                whole.rsplit(" = ").next().and_then(|n| n.trim().parse::<u64>().ok())
            else {
                continue;
            };
            if whole.starts_with("io_submit") {
                for (file, is_write, octets) in submitted(&whole) {
                    note(file, is_write, octets);
                }
            } else if result > 0 {
                // `pread64(9</a/file>, …`
                let file = whole.split(['<', '>']).nth(1).unwrap_or_default();
                note(file, whole.starts_with("pwrite"), result);
            }
        }
        counts
    }

    /// The final counts.
    pub(crate) fn end(mut self, of: &[&str]) -> BTreeMap<String, [u64; 4]> {
        self.child.signal(Signal::INT).unwrap();
        self.child.wait(PATIENCE).unwrap();
        self.counts(of)
    }
}

/// Parses file, direction and bytes of each request: `{aio_data=…, aio_lio_opcode=IOCB_CMD_PREADV, aio_fildes=9</a/file>,
/// aio_buf=[{iov_base=…, iov_len=512}, …], aio_offset=0}`
fn submitted(call: &str) -> impl Iterator<Item = (&str, bool, u64)> {
    let number = |text: &str| {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        text[..end].parse::<u64>().unwrap()
    };
    call.split("aio_lio_opcode=IOCB_CMD_").skip(1).filter_map(move |request| {
        let is_write = request.starts_with("PWRITE");
        if !is_write && !request.starts_with("PREAD") {
            return None;
        }
        let file = request.split(['<', '>']).nth(1)?;
        let lengths = request.split("iov_len=").skip(1).map(number).sum();
        let octets = request.split("aio_nbytes=").nth(1).map_or(lengths, number);
        Some((file, is_write, octets))
    })
}

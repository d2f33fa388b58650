//! What a process asks of its disks, as strace sees it: the independent count.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, wait_until};

/// Calls that read and write at a place in a file.
const CALLS: &str = "pread64,preadv,preadv2,pwrite64,pwritev,pwritev2";

/// strace on all threads of a process.
pub(crate) struct Strace {
    child: Child,
    log: PathBuf,
}

impl Strace {
    pub(crate) fn of(pid: u32, dir: &Path) -> Self {
        let log = dir.join("strace");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-y", "-qq", "-s", "0", "-e", &format!("trace={CALLS}"), "-o"]);
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

    /// Reads, writes, octets read and octets written of each file, by the end of its path. Calls that move nothing are
    /// left out.
    pub(crate) fn end(self, of: &[&str]) -> BTreeMap<String, [u64; 4]> {
        let mut child = self.child;
        child.signal(Signal::INT).unwrap();
        child.wait(PATIENCE).unwrap();
        let mut counts = BTreeMap::new();
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
            // A read behind the end of a file.
            if result == 0 {
                continue;
            }
            let Some(name) = of.iter().find(|name| whole.contains(&format!("{name}>"))) else {
                continue;
            };
            let counts: &mut [u64; 4] = counts.entry((*name).to_owned()).or_default();
            let at = usize::from(whole.starts_with("pwrite"));
            counts[at] += 1;
            counts[at + 2] += result;
        }
        counts
    }
}

//! The programs of other tools that run beside ours: Debian's libbpf-tools, which do something similar at the
//! same place.

use std::{
    collections::BTreeMap,
    env, fs,
    io::Read as _,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use xtask::lab::{Child, PATIENCE, wait_until};

/// A tool attaches its programs one after the other: they are complete when nothing has come for so long.
const PAUSE: Duration = Duration::from_millis(200);

/// A tool that runs until this is dropped, and no longer than an hour.
pub(super) struct Tool {
    pub(super) name: &'static str,
    /// Tracepoints that the tool has links to, with the ids of the programs there.
    programs: BTreeMap<String, u32>,
    _child: Child,
}

impl Tool {
    /// Starts the tool and waits until its programs are attached.
    pub(super) fn start(name: &'static str) -> anyhow::Result<Self> {
        let path = format!("{}:/usr/sbin", env::var("PATH").unwrap_or_default());
        // setpriv has the kernel end the tool when this process ends without dropping it.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", name, "3600", "1"]).env("PATH", path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Child::start(&mut command)?;
        let mut programs = BTreeMap::new();
        wait_until(PATIENCE, &format!("{name} attaches its programs"), || {
            thread::sleep(PAUSE);
            let now = linked_programs(child.pid());
            let complete = !now.is_empty() && now == programs;
            programs = now;
            (complete || child.ended().is_some()).then_some(())
        })?;
        if let Some(status) = child.ended() {
            let mut said = String::new();
            if let Some(stderr) = &mut child.process().stderr {
                stderr.read_to_string(&mut said)?;
            }
            anyhow::bail!("it ended with {status}: {}", said.trim());
        }
        Ok(Self { name, programs, _child: child })
    }

    /// The id of the tool's program at that tracepoint; `None` = it has none there.
    pub(super) fn program(&self, hook: &str) -> Option<u32> {
        self.programs.get(hook).copied()
    }
}

fn linked_programs(pid: u32) -> BTreeMap<String, u32> {
    let mut programs = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        // A descriptor may be closed by now.
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let value = |key| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        if let (Some(hook), Some(id)) = (value("tp_name:"), value("prog_id:"))
            && let Ok(id) = id.parse()
        {
            programs.insert(hook.to_owned(), id);
        }
    }
    programs
}

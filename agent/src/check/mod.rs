//! `kvmeter check`: what the agent needs of this host, whether it holds, and how to mend it.
//!
//! Each need is asked of the system itself, by trying where that has no effect. What is found and what it
//! means are apart: the files below read, then judge, and the judging is tested without a host.

mod capability;
mod directory;
mod hook;
mod kernel;
mod master;
mod source;

use std::fmt;

use serde::Serialize;

pub use kernel::btf_path;

use crate::config::{Config, ConfigError};
use crate::status::client::{self, ClientError};

/// One thing that the agent needs.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Need {
    /// What is needed, in a word or two.
    pub name: String,
    /// What was found.
    pub found: String,
    /// Whether that will do.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Whether a need holds, and if not, the fix.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "verdict", content = "fix", rename_all = "lowercase")]
pub enum Verdict {
    /// It holds.
    Ok,
    /// The agent works without, but serves less.
    Warn(String),
    /// The agent does not work without.
    Fail(String),
}

impl Need {
    /// A need that holds.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Ok }
    }

    /// A need without which the agent serves less.
    pub fn warn(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Warn(fix.into()) }
    }

    /// A need without which the agent does not work.
    pub fn fail(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Fail(fix.into()) }
    }

    fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }
}

/// All needs, in the order in which they are best mended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Preflight {
    /// Whether no need failed.
    pub ready: bool,
    /// The needs.
    pub needs: Vec<Need>,
}

/// Asks for everything. A configuration that is wrong is the first need, and the defaults are checked
/// then. The BPF programs are tried only where the kernel and the capabilities allow it.
pub fn preflight(config: Result<Config, &ConfigError>) -> Preflight {
    let (first, config) = match config {
        Ok(config) => (Need::ok("config", "every key is known and in range"), config),
        Err(e) => (judge_config(e), Config::default()),
    };
    let mut needs = vec![first];
    let host: Vec<Need> = kernel::needs().into_iter().chain(capability::needs()).collect();
    let able = !host.iter().any(Need::fails);
    needs.extend(host);
    needs.extend(directory::needs(&config));
    if able {
        needs.extend(hook::needs());
    } else {
        needs.push(hook::untried());
    }
    needs.extend(source::needs(&config.inventory));
    needs.push(master::need(&config.agentx.address));
    needs.push(running(client::fetch(&config.state.runtime_dir).map(|(_, report)| report.pid)));
    Preflight::of(needs)
}

impl Preflight {
    fn of(needs: Vec<Need>) -> Self {
        let ready = !needs.iter().any(Need::fails);
        Self { ready, needs }
    }
}

fn judge_config(error: &ConfigError) -> Need {
    let fix = match error {
        ConfigError::Unreadable { path, .. } => {
            format!("make {} a file that kvmeter may read", path.display())
        }
        ConfigError::Invalid { path, fault } => {
            format!("correct line {} of {}", fault.line, path.display())
        }
    };
    let found = match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    };
    Need::fail("config", found, fix)
}

fn running(pid: Result<u32, ClientError>) -> Need {
    match pid {
        Ok(pid) => Need::ok("agent", format!("runs with pid {pid}; see `kvmeter status`")),
        Err(ClientError::NotRunning { socket }) => {
            Need::ok("agent", format!("none runs (no answer at {})", socket.display()))
        }
        Err(ClientError::NotAllowed { socket }) => Need::warn(
            "agent",
            format!("{} may not be read", socket.display()),
            "run the check as root or in the group of the socket",
        ),
        Err(e) => Need::warn("agent", e.to_string(), "systemctl restart kvmeter"),
    }
}

impl fmt::Display for Preflight {
    /// One line for each need.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.needs.iter().map(|need| need.name.chars().count()).max().unwrap_or(0);
        for Need { name, found, verdict } in &self.needs {
            let (word, fix) = match verdict {
                Verdict::Ok => ("ok", None),
                Verdict::Warn(fix) => ("warn", Some(fix)),
                Verdict::Fail(fix) => ("FAIL", Some(fix)),
            };
            write!(f, "{word:<4}  {name:<width$}  {found}")?;
            match fix {
                Some(fix) => writeln!(f, ". Fix: {fix}")?,
                None => writeln!(f)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn one_line_a_need_and_ready_unless_one_fails() {
        let mut needs =
            vec![Need::ok("kernel BTF", "there"), Need::warn("debugfs", "not mounted", "mount it")];
        let preflight = Preflight::of(needs.clone());
        assert!(preflight.ready);
        assert_eq!(
            preflight.to_string(),
            "ok    kernel BTF  there\nwarn  debugfs     not mounted. Fix: mount it\n"
        );
        needs.push(Need::fail("CAP_BPF", "not held", "run as root"));
        let preflight = Preflight::of(needs);
        assert!(!preflight.ready);
        assert!(preflight.to_string().ends_with("FAIL  CAP_BPF     not held. Fix: run as root\n"));
    }

    #[test]
    fn machines_get_the_verdict_beside_the_fix() {
        let json = serde_json::to_value(Preflight::of(vec![
            Need::fail("a", "b", "c"),
            Need::ok("d", "e"),
        ]));
        assert_eq!(
            json.unwrap(),
            serde_json::json!({"ready": false, "needs": [
                {"name": "a", "found": "b", "verdict": "fail", "fix": "c"},
                {"name": "d", "found": "e", "verdict": "ok"},
            ]})
        );
    }

    #[test]
    fn a_configuration_with_a_mistake_is_told_with_its_line() {
        let fault = Config::parse("[agentx]\nadress = 1\n").unwrap_err();
        let need = judge_config(&ConfigError::Invalid { path: "/k.toml".into(), fault });
        assert!(need.found.starts_with("/k.toml:2: agentx.adress: no such key; "), "{need:?}");
        assert!(need.found.ends_with("Did you mean address?"), "{need:?}");
        assert_eq!(need.verdict, Verdict::Fail("correct line 2 of /k.toml".into()));
    }

    #[test]
    fn an_agent_that_runs_is_no_fault_and_one_that_is_silent_is() {
        let socket = || PathBuf::from("/run/kvmeter/status.sock");
        assert_eq!(running(Ok(7)).verdict, Verdict::Ok);
        let none = running(Err(ClientError::NotRunning { socket: socket() }));
        assert_eq!(none.verdict, Verdict::Ok);
        let source = std::io::ErrorKind::TimedOut.into();
        let silent = running(Err(ClientError::Io { socket: socket(), source }));
        assert_eq!(silent.verdict, Verdict::Warn("systemctl restart kvmeter".into()));
    }
}

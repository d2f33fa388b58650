//! `kvmeter check`: whether this host has what the agent needs, and how to fix what it lacks.
//!
//! Each check asks the system itself, and tries the operation where that has no side effect. Reading and assessing are
//! separate functions, so assessing is tested without a host.

mod capability;
mod directory;
mod hook;
mod kernel;
mod master;
mod namespace;
mod service;
mod sight;
mod source;

use std::fmt;

use serde::Serialize;

pub use hook::sizes;
pub use kernel::btf_path;
pub use namespace::blind_spots;
pub use service::{Service, become_service};

use crate::{
    config::{Config, ConfigError},
    probe::with_causes,
    status::client::{self, ClientError},
};

/// Name of the line that says whose rights were judged.
const RIGHTS: &str = "rights";

/// Whose rights a check judges: those of this process, which are …
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Judged {
    /// … those of the user who runs the check.
    Caller,
    /// … those of the service, because the process has become the service ([`become_service`]).
    Service(Service),
}

impl Judged {
    fn line(&self) -> Check {
        match self {
            Self::Caller => {
                let user = rustix::process::geteuid();
                let found = format!(
                    "those of user {user}, who runs this check; --as-service checks those of the service"
                );
                Check::ok(RIGHTS, found)
            }
            Self::Service(service) => service.line(),
        }
    }

    const fn service(&self) -> Option<&Service> {
        match self {
            Self::Caller => None,
            Self::Service(service) => Some(service),
        }
    }
}

/// One check and its result.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// What is checked, in a word or two.
    pub name: String,
    /// What was found.
    pub found: String,
    /// Whether that is sufficient.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// Result of a check, with the fix where it is not met.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(tag = "verdict", content = "fix", rename_all = "lowercase")]
pub enum Verdict {
    /// The check is met.
    Ok,
    /// The agent works, but serves less.
    Warn(String),
    /// The agent does not work.
    Fail(String),
}

impl Check {
    /// A check that is met.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Ok }
    }

    /// A check that is not met, so that the agent serves less.
    pub fn warn(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Warn(fix.into()) }
    }

    /// A check that is not met, so that the agent does not work.
    pub fn fail(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), found: found.into(), verdict: Verdict::Fail(fix.into()) }
    }

    fn fails(&self) -> bool {
        matches!(self.verdict, Verdict::Fail(_))
    }
}

/// All checks, in the order in which to fix them.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Preflight {
    /// Whether no check failed.
    pub ready: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// Runs all checks. If the configuration is invalid, the first check says so and the others check the defaults. The BPF
/// programs are loaded only if the kernel and the capabilities allow it.
pub fn preflight(config: Result<Config, &ConfigError>, judged: &Judged) -> Preflight {
    let (first, config) = match config {
        Ok(config) => (Check::ok("config", "every key is known and in range"), config),
        Err(e) => (assess_config(e), Config::default()),
    };
    let mut checks = vec![first, judged.line()];
    checks.extend(namespace::checks());
    let host: Vec<Check> = kernel::checks().into_iter().chain(capability::checks(judged)).collect();
    let able = !host.iter().any(Check::fails);
    checks.extend(host);
    checks.extend(directory::checks(&config, judged));
    checks.push(sight::check());
    if able {
        checks.extend(hook::checks(&config.limits));
    } else {
        checks.push(hook::untried());
    }
    checks.extend(source::checks(&config.inventory, judged));
    checks.push(master::check(&config.agentx.address));
    checks.push(running(client::fetch(&config.state.runtime_dir).map(|(_, report)| report.pid)));
    Preflight::of(checks)
}

impl Preflight {
    /// The result of these checks.
    #[must_use]
    pub fn of(checks: Vec<Check>) -> Self {
        let ready = !checks.iter().any(Check::fails);
        Self { ready, checks }
    }
}

fn assess_config(error: &ConfigError) -> Check {
    let fix = match error {
        ConfigError::Unreadable { path, .. } => {
            format!("make {} a file that kvmeter may read", path.display())
        }
        ConfigError::Invalid { path, diagnostic } => {
            format!("correct line {} of {}", diagnostic.line, path.display())
        }
    };
    Check::fail("config", with_causes(error), fix)
}

fn running(pid: Result<u32, ClientError>) -> Check {
    match pid {
        Ok(pid) => Check::ok("agent", format!("runs with pid {pid}; see `kvmeter status`")),
        Err(ClientError::NotRunning { socket }) => {
            Check::ok("agent", format!("none runs (no answer at {})", socket.display()))
        }
        Err(ClientError::NotAllowed { socket }) => Check::warn(
            "agent",
            format!("{} may not be read", socket.display()),
            "run the check as root or in the group of the socket",
        ),
        Err(e) => Check::warn("agent", e.to_string(), "systemctl restart kvmeter"),
    }
}

impl fmt::Display for Preflight {
    /// One line for each check.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
        for Check { name, found, verdict } in &self.checks {
            let (word, fix) = match verdict {
                Verdict::Ok => ("ok", None),
                Verdict::Warn(fix) => ("warn", Some(fix)),
                Verdict::Fail(fix) => ("FAIL", Some(fix)),
            };
            write!(f, "{word:<4}  {name:<width$}  {found}")?;
            match fix {
                Some(fix) if found.ends_with('?') => writeln!(f, " Fix: {fix}")?,
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
    fn one_line_a_check_and_ready_unless_one_fails() {
        let mut checks = vec![
            Check::ok("kernel BTF", "there"),
            Check::warn("debugfs", "not mounted", "mount it"),
        ];
        let preflight = Preflight::of(checks.clone());
        assert!(preflight.ready);
        assert_eq!(
            preflight.to_string(),
            "ok    kernel BTF  there\nwarn  debugfs     not mounted. Fix: mount it\n"
        );
        checks.push(Check::fail("CAP_BPF", "not held", "run as root"));
        let preflight = Preflight::of(checks);
        assert!(!preflight.ready);
        assert!(preflight.to_string().ends_with("FAIL  CAP_BPF     not held. Fix: run as root\n"));
    }

    #[test]
    fn json_has_the_verdict_beside_the_fix() {
        let json = serde_json::to_value(Preflight::of(vec![
            Check::fail("a", "b", "c"),
            Check::ok("d", "e"),
        ]));
        assert_eq!(
            json.unwrap(),
            serde_json::json!({"ready": false, "checks": [
                {"name": "a", "found": "b", "verdict": "fail", "fix": "c"},
                {"name": "d", "found": "e", "verdict": "ok"},
            ]})
        );
    }

    #[test]
    fn an_invalid_configuration_is_reported_with_its_line() {
        let diagnostic = Config::parse("[agentx]\nadress = 1\n").unwrap_err();
        let check = assess_config(&ConfigError::Invalid { path: "/k.toml".into(), diagnostic });
        assert!(check.found.starts_with("/k.toml:2: agentx.adress: no such key; "), "{check:?}");
        assert!(check.found.ends_with("Did you mean address?"), "{check:?}");
        assert_eq!(check.verdict, Verdict::Fail("correct line 2 of /k.toml".into()));
        let line = Preflight::of(vec![check]).to_string();
        assert!(line.ends_with("Did you mean address? Fix: correct line 2 of /k.toml\n"), "{line}");
    }

    #[test]
    fn a_running_agent_is_ok_and_a_silent_one_is_not() {
        let socket = || PathBuf::from("/run/kvmeter/status.sock");
        assert_eq!(running(Ok(7)).verdict, Verdict::Ok);
        let none = running(Err(ClientError::NotRunning { socket: socket() }));
        assert_eq!(none.verdict, Verdict::Ok);
        let source = std::io::ErrorKind::TimedOut.into();
        let silent = running(Err(ClientError::Io { socket: socket(), source }));
        assert_eq!(silent.verdict, Verdict::Warn("systemctl restart kvmeter".into()));
    }
}

//! Cores get the time and the world as arguments: no clock, no lock, no file, no kernel.

use std::collections::BTreeSet;

use super::{findings::Findings, source::Crate};

/// The names that a room must not use.
const CORES: &[(&str, &[&str])] = &[
    ("inventory", WORLD),
    ("agentx::session", WORLD),
    ("agentx::state", WORLD),
    ("agentx::codec", WORLD),
    ("mib", CLOCK),
    ("values", CLOCK),
];

const CLOCK: &[&str] = &["Instant::now", "SystemTime::now"];

const WORLD: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "std::fs",
    "std::net",
    "std::os",
    "std::sync::Condvar",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::thread",
    "crossbeam_channel",
    "nix",
    "procfs",
    "rustix",
    "tokio",
];

/// A file of a core that uses what it must not, and why. The list only shrinks: a file that is here and keeps the rule is
/// a finding, too.
const EXCEPTIONS: &[(&str, &str)] = &[];

pub(crate) fn check(agent: &Crate, findings: &mut Findings) {
    let mut excepted = BTreeSet::new();
    for (path, module) in &agent.modules {
        let name = path.join("::");
        let is_in = |room: &str| name == room || name.starts_with(&format!("{room}::"));
        let imports = module.imports.iter().map(|import| &import.path);
        for mention in imports.chain(&module.paths) {
            let written = format!("::{}::", mention.segments.join("::"));
            let rules = CORES.iter().filter(|(room, _)| is_in(room));
            let used = rules.flat_map(|(room, names)| names.iter().map(move |name| (room, name)));
            for (room, name) in used.filter(|(_, name)| written.contains(&format!("::{name}::"))) {
                if EXCEPTIONS.iter().any(|(file, _)| *file == module.file) {
                    excepted.insert(module.file.as_str());
                } else {
                    let place = format!("{}:{}", module.file, mention.line);
                    findings.add(&place, format!("`{room}` must not use `{name}`"));
                }
            }
        }
    }
    for (file, _) in EXCEPTIONS.iter().filter(|(file, _)| !excepted.contains(file)) {
        findings.add(file, "keeps the rule of cores: take it off the exceptions");
    }
}

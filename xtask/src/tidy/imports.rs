//! Who may import whom: arrows point down only.

use std::collections::BTreeSet;

use super::{files::is_in, findings::Findings, source::Crate};

/// A folder or a file of `agent/src`, and the rooms that it may name.
struct Room {
    /// As a path of modules. The longest that fits a module is its room.
    name: &'static str,
    may: &'static [&'static str],
}

/// The rooms from top to bottom. A room may name those in its row, itself, and the folders in itself.
const ROOMS: &[Room] = &[
    // The program: it puts the others together.
    Room { name: "cli", may: EVERY },
    Room { name: "run", may: EVERY },
    Room { name: "check", may: EVERY },
    // What is shown.
    Room {
        name: "notify",
        may: &[
            "account",
            "agentx",
            "inventory",
            "mib",
            "mib::vm_mib",
            "mib::context",
            "mib::smi",
            "rate",
            "snmp",
        ],
    },
    Room { name: "mib", may: &["mib::vm_mib", "mib::context", "mib::smi", "snmp"] },
    Room {
        name: "mib::vm_mib",
        may: &["mib::context", "mib::smi", "inventory", "values", "counters", "snmp"],
    },
    Room { name: "mib::context", may: &["inventory", "values", "counters"] },
    Room { name: "mib::smi", may: &["agentx", "snmp"] },
    Room { name: "status", may: &["values", "inventory", "counters", "unix_socket"] },
    Room { name: "config", may: &["agentx", "snmp"] },
    Room { name: "agentx", may: &["snmp", "histogram"] },
    // What is known.
    Room { name: "values", may: &["inventory", "counters"] },
    Room {
        name: "sources",
        may: &[
            "sources::procfs",
            "sources::libvirt",
            "account",
            "inventory",
            "heartbeat",
            "worker",
        ],
    },
    // It registers the threads that it finds, as only it holds them.
    Room {
        name: "sources::procfs",
        may: &[
            "account",
            "counting",
            "inventory",
            "sources",
            "counters",
            "probe",
            "heartbeat",
            "rate",
            "worker",
        ],
    },
    // It stores the slow values.
    Room {
        name: "sources::libvirt",
        may: &["inventory", "sources", "counters", "heartbeat", "worker"],
    },
    Room {
        name: "counting",
        may: &["account", "inventory", "counters", "probe", "heartbeat", "worker"],
    },
    Room { name: "heartbeat", may: &["counters"] },
    Room { name: "worker", may: &["inventory"] },
    Room { name: "inventory", may: &["account", "counters"] },
    // What is counted.
    Room { name: "counters", may: &["account", "probe", "histogram"] },
    Room { name: "probe", may: &[] },
    // What several share, and which shares nothing.
    Room { name: "account", may: &[] },
    Room { name: "snmp", may: &[] },
    Room { name: "histogram", may: &[] },
    Room { name: "exit", may: &[] },
    Room { name: "privileges", may: &[] },
    Room { name: "rate", may: &[] },
    Room { name: "unix_socket", may: &[] },
];

const EVERY: &[&str] = &["*"];

/// A file or a folder that breaks a rule, the room that it names, and why that is so today. The list only shrinks: what is
/// here and breaks no rule is a finding, too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("agent/src/inventory/view.rs", "probe", "a view says by which method a disk is counted"),
    ("agent/src/inventory/view.rs", "snmp", "vmHvObjectID is in the view"),
];

pub(crate) fn check(agent: &Crate, findings: &mut Findings) {
    let mut excepted = BTreeSet::new();
    for (path, module) in &agent.modules {
        // lib.rs and main.rs put rooms in a row.
        let Some(first) = path.first() else { continue };
        let Some(room) = room_of(path) else {
            let what = format!("`{first}` is no room: give it a row in xtask/src/tidy/imports.rs");
            findings.add(&module.file, what);
            continue;
        };
        let imports = module.imports.iter().map(|import| &import.path);
        for mention in imports.chain(&module.paths) {
            let Some((named, _)) = agent.find(path, &mention.segments) else { continue };
            let Some(other) = room_of(&named) else { continue };
            if room.may_name(other) {
                continue;
            }
            let excepts = |(place, room, _): &&(&str, &str, &str)| {
                *room == other.name && is_in(&module.file, place)
            };
            if let Some((place, room, _)) = EXCEPTIONS.iter().find(excepts) {
                excepted.insert((*place, *room));
                continue;
            }
            let written = mention.segments.join("::");
            let place = format!("{}:{}", module.file, mention.line);
            findings
                .add(&place, format!("`{}` must not name `{}` ({written})", room.name, other.name));
        }
    }
    for (place, room, _) in EXCEPTIONS {
        if !excepted.contains(&(*place, *room)) {
            findings.add(place, format!("does not name `{room}`: take it off the exceptions"));
        }
    }
}

impl Room {
    fn may_name(&self, other: &Self) -> bool {
        let is_within =
            other.name == self.name || other.name.starts_with(&format!("{}::", self.name));
        is_within || self.may == EVERY || self.may.contains(&other.name)
    }
}

fn room_of(module: &[String]) -> Option<&'static Room> {
    let path = module.join("::");
    ROOMS
        .iter()
        .filter(|room| path == room.name || path.starts_with(&format!("{}::", room.name)))
        .max_by_key(|room| room.name.len())
}

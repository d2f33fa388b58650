//! What a QEMU was told: on its command line, and in the files that its options name. Accepts any bytes.

mod arguments;
mod config_file;
mod disks;
mod machine;
mod nics;
mod nodes;
mod numbers;
mod services;

use arguments::{Entry, GAP, Subject};

use super::{
    command_line::{Description, Vmm, cut},
    options::{is_on, name_of},
    presence::Intent,
};
use crate::inventory::{Devices, VmUuid};

/// Describes a QEMU by the name of its program and its arguments. `read` returns the content of a configuration file at a
/// path of the process; `None`: it cannot be read.
pub(super) fn describe(
    program: &str,
    arguments: &[&str],
    read: &mut dyn FnMut(&str) -> Option<Vec<u8>>,
) -> Description {
    let mut entries = arguments::entries(arguments, read);
    entries.iter_mut().for_each(disks::normalize);
    let machine = machine::machine(program, &entries);
    let bus = machine::default_bus(program, &machine.board);
    let mut devices = Devices {
        disks: disks::disks(&entries, bus, &machine.flashes),
        nics: nics::nics(&entries),
    };
    devices.tidy();
    Description {
        vmm: Vmm::Qemu,
        name: name(&entries).map(cut),
        uuid: uuid(&entries),
        memory: machine.memory,
        max_memory: machine.max_memory,
        cpus: machine.cpus,
        max_cpus: machine.max_cpus,
        tcg: machine.tcg,
        starts_stopped: entries.iter().any(|entry| entry.subject == Subject::StartsStopped),
        has_temporary_overlays: has_temporary_overlays(arguments, &entries),
        no_machine: machine.board == "none",
        intent: Intent::of(arguments),
        devices,
        images: disks::images(&entries),
        config_file: None,
        gaps: gaps(&entries),
    }
}

fn has_temporary_overlays(arguments: &[&str], entries: &[Entry]) -> bool {
    let is_own =
        |entry: &Entry| entry.subject == Subject::Drive && is_on(entry.fields.get("snapshot"));
    arguments.iter().any(|argument| name_of(argument) == Some("snapshot"))
        || entries.iter().any(is_own)
}

/// What was read and not understood.
fn gaps(entries: &[Entry]) -> Vec<String> {
    let unread = entries.iter().filter(|entry| entry.subject == Subject::Unread);
    unread.filter_map(|entry| entry.fields.get(GAP).map(str::to_owned)).collect()
}

fn name(entries: &[Entry]) -> Option<&str> {
    let mut found = None;
    for Entry { subject, fields, .. } in entries {
        match subject {
            Subject::Name => found = fields.get_or_implied("guest").or(found),
            Subject::Unread => found = None,
            _ => {}
        }
    }
    found.filter(|name| !name.is_empty())
}

fn uuid(entries: &[Entry]) -> Option<VmUuid> {
    let (mut given, mut smbios) = (None, None);
    for Entry { subject, fields, .. } in entries {
        match subject {
            Subject::Uuid => given = fields.implied().and_then(VmUuid::parse),
            Subject::Smbios if fields.get("type") == Some("1") => {
                smbios = fields.get("uuid").and_then(VmUuid::parse);
            }
            _ => {}
        }
    }
    given.or(smbios)
}

/// Parses a configuration file, for the fuzzer.
pub(super) fn interpret_config(bytes: &[u8]) {
    let mut text = Some(bytes.to_vec());
    drop(describe("qemu-system-x86_64", &["-readconfig", "x"], &mut |_| text.take()));
}

#[cfg(test)]
mod tests;

//! Filesystems of the kernel.

use std::fs;

use super::ask;
use crate::command::{as_root, step};

/// Filesystems of the kernel that the programs, the tests and the inventory use.
const MOUNTS: [(&str, &str); 3] =
    [("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing"), ("debugfs", "/sys/kernel/debug")];

pub(super) fn mounts(yes: bool) -> anyhow::Result<()> {
    let mounted = fs::read_to_string("/proc/self/mounts")?;
    let is_there = |kind, place| {
        mounted.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(place) && fields.next() == Some(kind)
        })
    };
    let missing: Vec<_> =
        MOUNTS.into_iter().filter(|&(kind, place)| !is_there(kind, place)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|(kind, place)| format!("{kind} on {place}")).collect();
    ask(&format!("mount {}", names.join(", ")), yes)?;
    for (kind, place) in missing {
        step(&format!("Mounting {place}"), as_root("mount").args(["-t", kind, kind, place]))?;
    }
    Ok(())
}

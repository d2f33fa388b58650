//! Filesystems of the kernel.

use std::fs;

use crate::command::{as_root, step};

/// Kind and place of a filesystem.
pub(super) type Mount = (&'static str, &'static str);

/// What the programs, the tests and the inventory use.
const MOUNTS: [Mount; 3] =
    [("bpf", "/sys/fs/bpf"), ("tracefs", "/sys/kernel/tracing"), ("debugfs", "/sys/kernel/debug")];

pub(super) fn missing() -> anyhow::Result<Vec<Mount>> {
    let mounted = fs::read_to_string("/proc/self/mounts")?;
    let is_there = |kind, place| {
        mounted.lines().any(|line| {
            let mut fields = line.split(' ').skip(1);
            fields.next() == Some(place) && fields.next() == Some(kind)
        })
    };
    Ok(MOUNTS.into_iter().filter(|&(kind, place)| !is_there(kind, place)).collect())
}

pub(super) fn mount(missing: &[Mount]) -> anyhow::Result<()> {
    for (kind, place) in missing {
        step(&format!("Mounting {place}"), as_root("mount").args(["-t", kind, kind, place]))?;
    }
    Ok(())
}

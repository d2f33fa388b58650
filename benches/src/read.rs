//! What reading a counter costs.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
    process::{Command, Stdio},
};

use kvmeter::counters::{Readings as _, ThreadSlot};
use xtask::lab::missing;

use crate::{
    rounds::{Spread, print, time},
    threads::Counting,
};

const CALLS: usize = 20_000;
const FILES: usize = 500;

pub(crate) fn run() -> anyhow::Result<()> {
    println!("read: nanoseconds of reading one counter");
    let counting = Counting::begin()?;
    let vm = counting.track_this_process()?;
    let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
    let records = &counting.records;
    let slot = (1..=u16::MAX).map(ThreadSlot);
    let mut slot =
        slot.filter(|&slot| records.thread(slot).is_some_and(|thread| thread.tid == tid));
    let slot = slot.next().ok_or_else(|| anyhow::anyhow!("this thread has no record"))?;
    let path = format!("/proc/self/task/{tid}/schedstat");
    let held = File::open(&path)?;
    let mut buffer = [0; 64];
    let [vcpu, total, file, kept] = time([
        (CALLS, &mut || records.vcpu_time_ns(slot).unwrap_or(0)),
        (CALLS, &mut || records.vm_time_ns(vm).unwrap_or(0)),
        (FILES, &mut || first_word(&fs::read(&path).unwrap_or_default())),
        (FILES, &mut || {
            let len = held.read_at(&mut buffer, 0).unwrap_or(0);
            first_word(buffer.get(..len).unwrap_or_default())
        }),
    ]);
    print("vCPU time from its record", vcpu, Some(50.0));
    print("VM time over the records of one thread", total, None);
    print("schedstat, opened for each reading", file, None);
    print("schedstat, kept open", kept, None);
    let by = |slow: Spread| slow.median / vcpu.median;
    println!("schedstat takes {:.0} times as long, {:.0} kept open", by(file), by(kept));
    libvirt(vcpu);
    println!();
    Ok(())
}

fn first_word(text: &[u8]) -> u64 {
    let word = text.split(|octet| *octet == b' ').next().unwrap_or_default();
    std::str::from_utf8(word).ok().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// What a tool pays that asks libvirt for all domains at once.
fn libvirt(vcpu: Spread) {
    let virsh = |arguments: &[&str]| {
        let done = Command::new("virsh")
            .args(["-q", "-r"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        done.is_ok_and(|status| status.success())
    };
    if missing("libvirt").is_some() || !virsh(&["list"]) {
        println!("(virsh domstats is left out: no libvirtd answers)");
        return;
    }
    let [stats] = time([(1, &mut || u64::from(virsh(&["domstats", "--vcpu"])))]);
    print("virsh domstats --vcpu, one process and all domains", stats, None);
    println!("virsh takes {:.0} times as long", stats.median / vcpu.median);
}

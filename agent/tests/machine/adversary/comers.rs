//! VMs of root that come and go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{Client, TinyGuest, wait_until};

use crate::lab::stage::{VM_CPU_CORE_TIME, name};

use super::{
    LATE,
    traps::{Trap, Traps},
};

/// Notifications, by their numbers.
const RUNNING: u32 = 1;
const CRASHED: u32 = 9;
const DELETED: u32 = 10;

/// Limit for a notification to be received at all.
const LOST: Duration = Duration::from_secs(5);

/// Life of a VM, and the time to the next one.
const PAUSE: Duration = Duration::from_millis(300);

pub(super) struct Comers {
    client: Client,
    traps: Arc<Traps>,
}

impl Comers {
    pub(super) fn new(client: Client, traps: Arc<Traps>) -> Self {
        Self { client, traps }
    }

    /// Starts and kills VMs, one after the other, until `stop`. Returns what was wrong.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Vec<String> {
        let (mut wrong, mut latest) = (Vec::new(), Duration::ZERO);
        let mut count = 0;
        while !stop.load(Relaxed) {
            count += 1;
            match self.one(&format!("comer{count}"), &mut wrong) {
                Ok(late) => latest = latest.max(late),
                Err(what) => wrong.push(what),
            }
        }
        println!("{count} VMs came and went; the latest notification was {latest:?} late");
        wrong
    }

    /// The life of one VM. Returns how late its latest notification was.
    fn one(&mut self, vm: &str, wrong: &mut Vec<String>) -> Result<Duration, String> {
        let known = self.traps.count();
        let guest = TinyGuest::start(&["--name", vm, "--duty", "half"]).unwrap();
        let started = Instant::now();
        let named = format!("\"{vm}\"");
        let running = self.wait(known, |trap| trap.line.contains(&named) && trap.number == RUNNING);
        let running = running.ok_or_else(|| format!("{vm}: no vmRunning"))?;
        let index = running.index;
        let vcpu = name(VM_CPU_CORE_TIME, &[index, 1]);
        let mut seen = None;
        let served = wait_until(LOST, "its vCPU", || {
            seen = self.client.number(&vcpu).unwrap();
            seen.map(|_| Instant::now())
        });
        let served = served.map_err(|_| format!("{vm}: its vCPU is not served"))?;
        thread::sleep(PAUSE);
        let later = self.client.number(&vcpu).unwrap();
        if later < seen {
            wrong.push(format!("{vm}: vCPU time {seen:?}, then {later:?}"));
        }
        let killed = Instant::now();
        drop(guest);
        let deleted = self.wait(known, |trap| trap.index == index && trap.number == DELETED);
        let deleted = deleted.ok_or_else(|| format!("{vm}: no vmDeleted"))?;
        if let Some(time) = self.client.number(&vcpu).unwrap() {
            wrong.push(format!("{vm}: vCPU time {time} after vmDeleted"));
        }
        let its: Vec<u32> = self
            .traps
            .since(known)
            .filter(|trap| trap.index == index)
            .map(|trap| trap.number)
            .collect();
        if its != [RUNNING, CRASHED, DELETED] {
            wrong.push(format!("{vm}: notifications {its:?}"));
        }
        for (what, at, since) in [
            ("vmRunning", running.at, started),
            ("its vCPU", served, started),
            ("vmDeleted", deleted.at, killed),
        ] {
            let late = at.saturating_duration_since(since);
            if late > LATE {
                wrong.push(format!("{vm}: {what} {late:?} late"));
            }
        }
        thread::sleep(PAUSE);
        let late = running.at.saturating_duration_since(started);
        Ok(late.max(deleted.at.saturating_duration_since(killed)))
    }

    fn wait(&self, known: usize, is_wanted: impl Fn(&Trap) -> bool) -> Option<Trap> {
        let find = || self.traps.since(known).find(|trap| is_wanted(trap));
        wait_until(LOST, "a notification", find).ok()
    }
}

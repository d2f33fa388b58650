//! What the users do.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use xtask::lab::{Adversary, Child, User};

/// Most attacks at a time.
const AT_ONCE: usize = 3;

/// Shortest and longest duration of an attack in ms.
const DURATION: std::ops::Range<u64> = 500..3_000;

/// Pause between the starts of two attacks in ms.
const PAUSE: std::ops::Range<u64> = 50..500;

/// Disks and open files of a process that has many.
const FILES: u32 = 2_000;

/// Copies of the descriptor of a VM.
const DUPS: u32 = 8_000;

const KINDS: [Kind; 11] = [
    Kind::Copy,
    Kind::Rewrite,
    Kind::Lease,
    Kind::Fifo,
    Kind::Slow,
    Kind::Drives,
    Kind::Files,
    Kind::Forks,
    Kind::Questions,
    Kind::Dups,
    Kind::Vms,
];

/// Attacks that are made unless `KVMETER_ATTACKS` names others, with commas between the names. All eleven together cost the agent
/// half of a CPU, and delay VMs that start by up to 0.9 s; which of the others does so was not measured.
const HELD: [Kind; 5] = [Kind::Copy, Kind::Rewrite, Kind::Lease, Kind::Fifo, Kind::Slow];

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    /// Has name and UUID of another VM.
    Copy,
    /// Writes them over its command line.
    Rewrite,
    /// Its configuration file is under a write lease.
    Lease,
    /// Its configuration file is a FIFO.
    Fifo,
    /// Its disk is on a file server that hangs.
    Slow,
    /// Has many disks.
    Drives,
    /// Has many disks and has them open.
    Files,
    Forks,
    /// `-version`, again and again.
    Questions,
    /// Has many descriptors of its VM.
    Dups,
    /// Makes and destroys VMs.
    Vms,
}

pub(super) struct Attacks {
    adversary: Adversary,
    hung: PathBuf,
    /// Names and UUIDs of the other VMs.
    others: Vec<(String, String)>,
    kinds: Vec<Kind>,
    random: fastrand::Rng,
    number: u32,
}

impl Attacks {
    pub(super) fn new(
        adversary: Adversary,
        hung: PathBuf,
        others: Vec<(String, String)>,
        seed: u64,
    ) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        // Any others, to find out what they do.
        let named = std::env::var("KVMETER_ATTACKS").ok();
        let is_meant = |kind: &Kind| match &named {
            Some(named) => named.split(',').any(|name| name == format!("{kind:?}")),
            None => HELD.contains(kind),
        };
        let kinds = KINDS.into_iter().filter(is_meant).collect();
        Self { adversary, hung, others, kinds, random, number: 0 }
    }

    /// Attacks until `stop`. Returns how often each attack was made.
    pub(super) fn run(mut self, stop: &AtomicBool) -> BTreeMap<String, u32> {
        let mut under_way: Vec<(Instant, Child)> = Vec::new();
        let mut made = BTreeMap::new();
        while !stop.load(Relaxed) {
            thread::sleep(Duration::from_millis(self.random.u64(PAUSE)));
            let now = Instant::now();
            under_way.retain(|(end, _)| *end > now);
            if under_way.len() >= AT_ONCE {
                continue;
            }
            // Each once, then at random.
            let kind = match self.kinds.get(self.number as usize) {
                Some(kind) => *kind,
                None => self.kinds[self.random.usize(..self.kinds.len())],
            };
            self.number += 1;
            let duration = Duration::from_millis(self.random.u64(DURATION));
            under_way.push((now + duration, self.start(kind)));
            *made.entry(format!("{kind:?}")).or_default() += 1;
        }
        made
    }

    fn start(&mut self, kind: Kind) -> Child {
        let user = match kind {
            Kind::Dups | Kind::Vms => User::WithKvm,
            _ => [User::Plain, User::WithKvm][self.random.usize(..2)],
        };
        let (name, uuid) = self.others[self.random.usize(..self.others.len())].clone();
        let own = (format!("mallory{}", self.number), format!("{:036}", self.number));
        let line = |(name, uuid): &(String, String)| {
            format!("qemu-system-x86_64 -name guest={name},debug-threads=on -uuid {uuid} -m 64")
        };
        let copied = (name, uuid);
        let path = self.adversary.path(user, &format!("file{}", self.number)).display().to_string();
        let hung = self.hung.display();
        let (files, dups) = (FILES.to_string(), DUPS.to_string());
        let with_kvm = user == User::WithKvm;
        let drives = |count: u32| {
            let drive = |number| format!(" -drive file={path}/d{number},format=raw");
            (0..count).map(drive).collect::<String>()
        };
        let file = [("ATTACK_FILE", &*path), ("ATTACK_COUNT", &*files)];
        let (attack, variables, disguise) = match kind {
            Kind::Copy => (if with_kvm { "vm" } else { "sleep" }, vec![], line(&copied)),
            Kind::Rewrite => {
                let text = line(&copied);
                let padded = format!("{} -append {:0100}", line(&own), 0);
                return self
                    .adversary
                    .start(user, "copy", &[("ATTACK_TEXT", &text)], &words(&padded))
                    .unwrap();
            }
            Kind::Lease | Kind::Fifo => {
                let attack = if kind == Kind::Lease { "lease" } else { "fifo" };
                let lines = [
                    format!("firecracker --id x --config-file {path}"),
                    format!("{} -readconfig {path}", line(&own)),
                ];
                (attack, file.to_vec(), lines[self.random.usize(..2)].clone())
            }
            Kind::Slow => {
                let paths =
                    [hung.to_string(), format!("/dev/..{hung}"), format!("/proc/self/root{hung}")];
                let path = &paths[self.random.usize(..3)];
                ("sleep", vec![], format!("{} -drive file={path},format=raw", line(&own)))
            }
            Kind::Drives => ("sleep", vec![], line(&own) + &drives(FILES)),
            Kind::Files => ("files", file.to_vec(), line(&own) + &drives(FILES)),
            Kind::Forks => ("forks", vec![], line(&own)),
            Kind::Questions => ("execs", vec![], "qemu-system-x86_64 -version".to_owned()),
            Kind::Dups => ("dups", vec![("ATTACK_COUNT", &*dups)], line(&own)),
            Kind::Vms => ("vms", vec![], line(&own)),
        };
        self.adversary.start(user, attack, &variables, &words(&disguise)).unwrap()
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

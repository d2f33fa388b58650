//! What the users do.

use std::{
    collections::{BTreeMap, BTreeSet},
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

const KINDS: [Kind; 15] = [
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
    Kind::Crowd,
    Kind::Ring,
    Kind::Pins,
    Kind::Hang,
];

/// Children of a process that has many.
const CHILDREN: u32 = 200;

/// Requests that never complete: more than the agent counts of one VM, and than it could count of all.
const REQUESTS: u32 = 60_000;

/// Most processes that hang: each keeps a reader of the agent for as long as the file server hangs.
const MAX_STUCK: usize = 4;

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
    /// Has many children that look like VMs.
    Crowd,
    /// Has requests that never complete.
    Ring,
    /// Tries to change the agent's directories.
    Pins,
    /// Executes a program, and waits meanwhile for a file server that hangs.
    Hang,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Made {
    /// How often each attack was made.
    pub(super) counts: BTreeMap<String, u32>,
    /// The users that made one.
    pub(super) users: BTreeSet<u32>,
    /// Processes that cannot end before the file server does.
    pub(super) stuck: Vec<Child>,
}

pub(super) struct Attacks {
    adversary: Adversary,
    hung: PathBuf,
    /// Names and UUIDs of the other VMs.
    others: Vec<(String, String)>,
    /// The agent's directories.
    dirs: Vec<PathBuf>,
    kinds: Vec<Kind>,
    random: fastrand::Rng,
    number: u32,
}

impl Attacks {
    pub(super) fn new(
        adversary: Adversary,
        hung: PathBuf,
        others: Vec<(String, String)>,
        dirs: Vec<PathBuf>,
        seed: u64,
    ) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        // Some of them, to find out what they do.
        let named = std::env::var("KVMETER_ATTACKS").ok();
        let is_meant = |kind: &Kind| match &named {
            Some(named) => named.split(',').any(|name| name == format!("{kind:?}")),
            None => true,
        };
        let kinds = KINDS.into_iter().filter(is_meant).collect();
        Self { adversary, hung, others, dirs, kinds, random, number: 0 }
    }

    /// Attacks until `stop`.
    pub(super) fn run(mut self, stop: &AtomicBool) -> Made {
        let mut under_way: Vec<(Instant, Child)> = Vec::new();
        let mut made = Made::default();
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
            if kind == Kind::Hang && made.stuck.len() >= MAX_STUCK {
                continue;
            }
            let (user, child) = self.start(kind);
            match kind {
                Kind::Hang => made.stuck.push(child),
                _ => under_way.push((now + duration, child)),
            }
            made.users.insert(user.id());
            *made.counts.entry(format!("{kind:?}")).or_default() += 1;
        }
        made
    }

    fn start(&mut self, kind: Kind) -> (User, Child) {
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
        let hung_file = hung.to_string();
        let [files, dups, children, requests] =
            [FILES, DUPS, CHILDREN, REQUESTS].map(|count| count.to_string());
        let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
        let dirs = dirs.join(":");
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
                let variables = [("ATTACK_TEXT", &*text)];
                let child = self.adversary.start(user, "copy", &variables, &words(&padded));
                return (user, child.unwrap());
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
            Kind::Crowd => ("crowd", vec![("ATTACK_COUNT", &*children)], line(&own)),
            Kind::Ring => ("ring", vec![("ATTACK_COUNT", &*requests)], line(&own)),
            Kind::Pins => ("pins", vec![("ATTACK_DIRS", &*dirs)], line(&own)),
            Kind::Hang => ("hang", vec![("ATTACK_FILE", &*hung_file)], line(&own)),
        };
        (user, self.adversary.start(user, attack, &variables, &words(&disguise)).unwrap())
    }
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

//! The VMs that stay: what SNMP shows of them is compared with what the kernel and QEMU know.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use xtask::lab::{Accelerator, Child, Libvirtd, Qemu, Qmp, TinyGuest, wait_until};

use crate::lab::{
    libvirt::uuid,
    stage::{Stage, VM_CPU_CORE_TIME, VM_CPU_TIME, name, process_clock_ns, schedstat_ns, vm_in},
};

use super::LATE;

/// VMs of each kind.
const DOMAINS: u32 = 7;
const QEMUS: u32 = 7;
const OTHERS: u32 = 6;

/// Pause between two checks.
const PAUSE: Duration = Duration::from_millis(100);

/// Limit for the firmware of the VMs, on a machine that has other work.
const FIRMWARE: Duration = Duration::from_secs(120);

/// Interval between two looks at the status.
const STATUS: Duration = Duration::from_secs(3);

/// Most CPU time in ns that a value may differ from the kernel's own sums, which running threads bring up to date at ticks.
const TOLERANCE: u64 = 10_000_000;

const VM_OPER_STATE: &[u32] = &[4, 1, 6];
const STORAGE_READ_IOS: &[u32] = &[7, 1, 13];
const RUNNING: u64 = 4;

/// What is compared at each check.
const COUNTERS: [&str; 3] = ["CPU time", "vCPU time", "reads"];

struct Victim {
    name: String,
    index: u32,
    pid: u32,
    tid: u32,
    /// vmStorageIndex.
    disk_index: u32,
    /// The monitor, and the drive's name in it.
    disk: Option<(Qmp, String)>,
    /// Requests that were made, with those before the first.
    reads: Option<u64>,
    last_read: Instant,
    /// The numbers at the last check.
    before: [Option<u64>; 3],
    /// Since when the CPU time is behind.
    behind: Option<Instant>,
}

pub(super) struct Victims {
    all: Vec<Victim>,
    next: usize,
    status_due: Instant,
    /// Name, UUID and process by vmIndex.
    shown: BTreeMap<u64, [String; 3]>,
    _guests: Vec<Child>,
}

impl Victims {
    /// Starts them, and waits until they are served.
    pub(super) fn start(dir: &Path, libvirtd: &Libvirtd, stage: &Stage) -> Self {
        let mut found = Vec::new();
        let mut guests = Vec::new();
        let image = |name: &str| {
            let path = dir.join(format!("{name}.raw"));
            fs::File::create(&path).unwrap().set_len(8 << 20).unwrap();
            path.display().to_string()
        };
        let monitor = |name: &str| dir.join(format!("{name}.qmp"));
        for number in 1..=DOMAINS {
            let name = format!("domain{number}");
            let socket = monitor(&name);
            libvirtd
                .create(&format!(
                    "<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\
                     <name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>64</memory>\
                     <os><type arch='x86_64' machine='pc'>hvm</type></os>\
                     <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>\
                     <disk type='file' device='disk'><driver name='qemu' type='raw'/>\
                     <source file='{image}'/><target dev='vda' bus='virtio'/></disk></devices>\
                     <qemu:commandline><qemu:arg value='-qmp'/>\
                     <qemu:arg value='unix:{socket},server=on,wait=off'/></qemu:commandline>\
                     </domain>",
                    uuid = uuid(number),
                    image = image(&name),
                    socket = socket.display(),
                ))
                .unwrap();
            let pid = libvirtd.pid(&name).unwrap();
            found.push((
                name,
                pid,
                Some((socket, "-d /machine/peripheral/virtio-disk0/virtio-backend".to_owned())),
            ));
        }
        for number in 1..=QEMUS {
            let name = format!("plain{number}");
            let socket = monitor(&name);
            let drive = format!("file={},format=raw,if=none,id=d0", image(&name));
            let qmp = format!("unix:{},server=on,wait=off", socket.display());
            let device = "virtio-blk-pci,drive=d0";
            let uuid = uuid(100 + number);
            let options = ["-uuid", &uuid, "-drive", &drive, "-device", device, "-qmp", &qmp];
            let qemu = Qemu::start(&name, Accelerator::Kvm, &options).unwrap();
            found.push((name, qemu.child.pid(), Some((socket, "d0".to_owned()))));
            guests.push(qemu.child);
        }
        for number in 1..=OTHERS {
            let name = format!("other{number}");
            let config = dir.join(format!("{name}.json"));
            let text = serde_json::json!({ "drives": [{
                "drive_id": "root", "path_on_host": image(&name), "is_root_device": true,
                "is_read_only": false }] });
            fs::write(&config, text.to_string()).unwrap();
            let config = config.to_str().unwrap();
            let options = ["--id", &name, "--config-file", config, "--requests", "20"];
            let guest = TinyGuest::start_as("firecracker", &options).unwrap();
            found.push((name, guest.pid(), None));
            guests.push(guest.into_child());
        }
        let all = found.into_iter().map(|(name, pid, disk)| {
            let index = stage.wait_for_vm(pid, 1);
            let vm = stage.vm("pid", pid).unwrap();
            let tid = vm["vcpus"][0]["tid"].as_u64().unwrap().try_into().unwrap();
            let disk = disk.map(|(socket, drive)| (Qmp::connect(&socket).unwrap(), drive));
            let (last_read, before) = (Instant::now(), [None; 3]);
            Victim {
                name,
                index,
                pid,
                tid,
                disk_index: 0,
                disk,
                reads: None,
                last_read,
                before,
                behind: None,
            }
        });
        let mut victims = Self {
            all: all.collect(),
            next: 0,
            status_due: Instant::now(),
            shown: BTreeMap::new(),
            _guests: guests,
        };
        victims.shown = victims.rows(stage);
        victims.wait_for_firmware(stage);
        victims
    }

    /// Waits until each firmware has looked for a system on its disk, and found none: it reads one sector. QEMU tells
    /// whether it did: what is served has QEMU's own reads too, which come before.
    fn wait_for_firmware(&mut self, stage: &Stage) {
        for (qmp, _) in self.all.iter_mut().filter_map(|victim| victim.disk.as_mut()) {
            wait_until(FIRMWARE, "a firmware has read", || {
                let answer = qmp.execute(r#"{"execute":"query-blockstats"}"#).unwrap();
                let answer: Value = serde_json::from_str(&answer).unwrap();
                (answer["return"][0]["stats"]["rd_operations"].as_u64()? > 0).then_some(())
            })
            .unwrap();
        }
        let status = stage.status();
        for victim in &mut self.all {
            let disk = &vm_in(&status, "index", victim.index).unwrap()["disks"][0];
            victim.disk_index = disk["index"].as_u64().unwrap().try_into().unwrap();
        }
    }

    /// The command lines by which they are known: name and UUID.
    pub(super) fn identities(&self) -> Vec<(String, String)> {
        let of = |victim: &Victim| {
            let [name, uuid, _] = &self.shown[&u64::from(victim.index)];
            (name.clone(), uuid.clone())
        };
        self.all.iter().map(of).collect()
    }

    pub(super) fn has(&self, index: u32) -> bool {
        self.all.iter().any(|victim| victim.index == index)
    }

    /// One check of all, and one request of a disk.
    pub(super) fn check(&mut self, stage: &mut Stage, wrong: &mut Vec<String>) {
        let started = Instant::now();
        for half in self.all.chunks_mut(10) {
            check(half, stage, wrong);
        }
        self.next = (self.next + 1) % self.all.len();
        let victim = &mut self.all[self.next];
        if let (Some((qmp, drive)), Some(reads)) = (&mut victim.disk, &mut victim.reads) {
            qmp.request(drive, "read 0 4k").unwrap();
            *reads += 1;
            victim.last_read = Instant::now();
        }
        if self.status_due <= started {
            self.status_due = started + STATUS;
            let asked = Instant::now();
            let rows = self.rows(stage);
            if asked.elapsed() > LATE * 4 {
                wrong.push(format!("the status took {:?}", asked.elapsed()));
            }
            for (index, shown) in &self.shown {
                if rows.get(index) != Some(shown) {
                    wrong.push(format!("{index} is {shown:?}, shown as {:?}", rows.get(index)));
                }
            }
        }
        thread::sleep(PAUSE.saturating_sub(started.elapsed()));
    }

    /// What the status shows of these VMs.
    fn rows(&self, stage: &Stage) -> BTreeMap<u64, [String; 3]> {
        let status = stage.status();
        let rows = status["vms"].as_array().unwrap().iter().map(|vm| {
            let text = |key: &str| vm[key].as_str().unwrap_or_default().to_owned();
            (vm["index"].as_u64().unwrap(), [text("name"), text("uuid"), vm["pid"].to_string()])
        });
        rows.filter(|(index, _)| self.all.iter().any(|vm| u64::from(vm.index) == *index)).collect()
    }
}

fn check(victims: &mut [Victim], stage: &mut Stage, wrong: &mut Vec<String>) {
    let names: Vec<Vec<u32>> = victims
        .iter()
        .flat_map(|victim| {
            [
                name(VM_OPER_STATE, &[victim.index]),
                name(VM_CPU_TIME, &[victim.index]),
                name(VM_CPU_CORE_TIME, &[victim.index, 1]),
                name(STORAGE_READ_IOS, &[victim.index, victim.disk_index]),
            ]
        })
        .collect();
    let names: Vec<&[u32]> = names.iter().map(Vec::as_slice).collect();
    let clocks = |victims: &[Victim]| -> Vec<[u64; 2]> {
        let of = |vm: &Victim| [process_clock_ns(vm.pid), schedstat_ns(vm.pid, vm.tid)];
        victims.iter().map(of).collect()
    };
    let low = clocks(victims);
    let answer = match stage.client.get(&names) {
        Ok(answer) => answer,
        Err(error) => return wrong.push(format!("no answer: {error}")),
    };
    let took = answer.answered - answer.asked;
    if took > LATE {
        wrong.push(format!("an answer took {took:?}"));
    }
    let high = clocks(victims);
    for (at, victim) in victims.iter_mut().enumerate() {
        let [state, vm, vcpu, reads] = answer.values[at * 4..at * 4 + 4] else { continue };
        victim.compare(state, [vm, vcpu, reads], low[at], high[at], wrong);
    }
}

impl Victim {
    fn compare(
        &mut self,
        state: Option<u64>,
        now: [Option<u64>; 3],
        low: [u64; 2],
        high: [u64; 2],
        wrong: &mut Vec<String>,
    ) {
        let mut say = |what: String| wrong.push(format!("{}: {what}", self.name));
        let [vm, vcpu, reads] = now;
        if state != Some(RUNNING) {
            say(format!("state {state:?}"));
        }
        for (what, (before, now)) in COUNTERS.iter().zip(self.before.iter().zip(now)) {
            if now.is_none() || now < *before {
                say(format!("{what} {now:?} after {before:?}"));
            }
        }
        self.before = now;
        if let (Some(vm), Some(vcpu)) = (vm, vcpu) {
            let (vm, vcpu) = (vm * 1000, vcpu * 1000);
            if vm > high[0] + TOLERANCE {
                say(format!("CPU time {vm}, beyond {}", high[0]));
            }
            if vcpu > high[0] + TOLERANCE {
                say(format!("vCPU time {vcpu}, beyond {}", high[0]));
            }
            let is_behind = vm + TOLERANCE < low[0] || vcpu + TOLERANCE < low[1];
            self.behind = is_behind.then(|| self.behind.unwrap_or_else(Instant::now));
            if let Some(since) = self.behind.filter(|since| since.elapsed() > LATE) {
                let late = since.elapsed();
                say(format!("CPU times {vm} and {vcpu}, behind {low:?} for {late:?}"));
            }
        }
        let (Some(now), Some(_)) = (reads, &self.disk) else { return };
        let made = *self.reads.get_or_insert(now);
        if now > made || (now < made && self.last_read.elapsed() > LATE) {
            say(format!("{now} reads, {made} made {:?} ago", self.last_read.elapsed()));
        }
    }
}

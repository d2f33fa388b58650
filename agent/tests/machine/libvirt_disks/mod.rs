//! The I/O of the disks of real domains, made by their own QEMU, against what was asked of it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod changes;
mod guest;

use std::{fmt, process::Command};

use crate::lab::{
    libvirt::{Host, domain, uuid},
    stage::Stage,
};
use xtask::lab::{LoopDevice, PATIENCE, wait_until};

/// vmStorageReadIOs to vmStorageWriteLatency.
const COLUMNS: [u32; 6] = [13, 14, 15, 16, 17, 18];
/// Requests of each step.
const REQUESTS: u64 = 50;
/// How often it is tried to have the kernel use memory again.
const ROUNDS: usize = 50;

/// What lies behind a disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Source {
    Raw,
    Qcow2,
    Backed,
    Loop,
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    source: Source,
    cache: &'static str,
    io: &'static str,
}

impl Kind {
    /// Every combination that QEMU takes: Linux AIO wants the page cache passed by.
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for source in [Source::Raw, Source::Qcow2, Source::Backed, Source::Loop] {
            for cache in ["none", "writeback", "directsync"] {
                for io in ["threads", "native", "io_uring"] {
                    if (cache, io) != ("writeback", "native") {
                        all.push(Self { source, cache, io });
                    }
                }
            }
        }
        all
    }

    /// Its part of a domain's description, with new images.
    fn disk(
        self,
        host: &Host,
        number: usize,
        (target, bus): (&str, &str),
        address: &str,
        loops: &mut Vec<LoopDevice>,
    ) -> String {
        let filled = |name: &str| {
            let path = host.image(name, &["-f", "raw"], "8M");
            std::fs::write(&path, vec![7; 8 << 20]).unwrap();
            path
        };
        let (kind, format, source) = match self.source {
            Source::Raw => {
                let path = filled(&format!("{number}.raw"));
                ("file", "raw", format!("<source file='{path}'/>"))
            }
            Source::Qcow2 => {
                let path = host.image(&format!("{number}.qcow2"), &["-f", "qcow2"], "8M");
                ("file", "qcow2", format!("<source file='{path}'/>"))
            }
            Source::Backed => {
                let base = filled(&format!("{number}.base"));
                let options = ["-f", "qcow2", "-F", "raw", "-b", &base];
                let path = host.image(&format!("{number}.over"), &options, "8M");
                ("file", "qcow2", format!("<source file='{path}'/>"))
            }
            Source::Loop => {
                let device = LoopDevice::of(filled(&format!("{number}.loop")).as_ref()).unwrap();
                let source = format!("<source dev='{}'/>", device.path().display());
                loops.push(device);
                ("block", "raw", source)
            }
        };
        let Self { cache, io, .. } = self;
        format!(
            "<disk type='{kind}' device='disk'>\
             <driver name='qemu' type='{format}' cache='{cache}' io='{io}'/>{source}\
             <target dev='{target}' bus='{bus}'/>{address}</disk>"
        )
    }

    /// What is to count it.
    fn method(self) -> &'static str {
        match (self.cache, self.source, self.io) {
            (.., "io_uring") => "io_uring",
            ("writeback", ..) => "syscall",
            (_, Source::Loop, _) => "bdev",
            _ => "dio",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, cache, io } = self;
        write!(f, "{source:?} {cache} {io}")
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Counts([u64; 6]);

/// vmStorageVmIndex and vmStorageIndex.
#[derive(Clone, Copy, Debug)]
struct Disk {
    index: u32,
    disk: u32,
}

impl Disk {
    /// That of a domain with this name in its guest, once the kernel counts it.
    fn of(host: &Host, number: u32, target: &str) -> Self {
        let index = host.stage.index_by_uuid(&uuid(number));
        let disk = wait_until(PATIENCE, "the kernel counts the disk", || {
            // Where several events of a domain have come, it is described up to a quarter of a second later.
            let told = host.stage.find_disk(index, target)?;
            let is_counted = told["counted_by"].is_string();
            is_counted.then(|| u32::try_from(told["index"].as_u64().unwrap()).unwrap())
        });
        let disk = disk.unwrap_or_else(|error| {
            panic!("{error}: {:?}\n{}", host.stage.find_disk(index, target), host.stage.agent.log())
        });
        Self { index, disk }
    }

    fn counts(self, stage: &mut Stage) -> Counts {
        Counts(
            COLUMNS.map(|column| stage.number(&[7, 1, column], &[self.index, self.disk]).unwrap()),
        )
    }

    /// Where requests end in interrupts, the end of one may be seen only when the kernel uses its memory for another.
    fn settles_at(self, stage: &mut Stage, mut expected: Counts, url: &str, kind: Kind) {
        let is_late = kind.io == "native" || kind.method() == "bdev";
        for _ in 0..ROUNDS {
            let now = self.counts(stage);
            let is_there = match kind.source {
                Source::Raw | Source::Loop => now.0[..4] == expected.0[..4],
                // Metadata is read and written, too; holes are not read.
                Source::Qcow2 | Source::Backed => {
                    now.0[1] >= expected.0[1] && now.0[3] >= expected.0[3]
                }
            };
            if is_there {
                return;
            }
            assert!(is_late, "{kind}: {now:?}, expected {expected:?}");
            for is_write in [false, true] {
                bench(url, 64, "4k", 64, is_write);
                expected.0[usize::from(is_write)] += 64;
                expected.0[usize::from(is_write) + 2] += 64 * 4096;
            }
        }
        panic!("{kind}: {:?}, expected {expected:?}", self.counts(stage));
    }
}

/// Has QEMU make so many requests of an export, by its own block layer.
fn bench(url: &str, requests: u64, size: &str, depth: u32, is_write: bool) {
    let mut bench = Command::new("qemu-img");
    bench.args(["bench", "-f", "raw", "-c", &requests.to_string(), "-s", size]);
    bench.args(["-d", &depth.to_string()]).args(is_write.then_some("-w")).arg(url);
    let done = bench.output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// The NBD server in a domain's QEMU, through which its disks are used as the guest would.
struct Nbd {
    socket: String,
    domain: String,
}

impl Nbd {
    fn start(host: &Host, number: u32) -> Self {
        let socket = host.images.path().join("nbd").to_str().unwrap().to_owned();
        let nbd = Self { socket, domain: uuid(number) };
        let address = format!(r#"{{"type":"unix","data":{{"path":"{}"}}}}"#, nbd.socket);
        nbd.order(
            host,
            &format!(r#"{{"execute":"nbd-server-start","arguments":{{"addr":{address}}}}}"#),
        );
        nbd
    }

    /// Makes a disk of the SCSI controller be found under this name. Where.
    fn export(&self, host: &Host, name: &str, number: usize) -> String {
        let node = self.node(host, number);
        self.order(
            host,
            &format!(
                r#"{{"execute":"block-export-add","arguments":{{"type":"nbd","id":"{name}","node-name":"{node}","name":"{name}","writable":true}}}}"#
            ),
        );
        format!("nbd+unix:///{name}?socket={}", self.socket)
    }

    /// The node of the block layer that a disk of the SCSI controller uses. libvirt 10 and newer have none for the format of
    /// a raw image.
    fn node(&self, host: &Host, number: usize) -> String {
        let blocks = self.order(host, r#"{"execute":"query-block"}"#);
        let blocks: serde_json::Value = serde_json::from_str(&blocks).unwrap();
        let device = format!("scsi0-0-0-{number}");
        // An id, or a path that ends with it.
        let is_its = |block: &&serde_json::Value| {
            block["qdev"].as_str().is_some_and(|qdev| qdev.rsplit('/').next() == Some(&device))
        };
        let block = blocks["return"].as_array().unwrap().iter().find(is_its);
        let block = block.unwrap_or_else(|| panic!("no {device}: {blocks}"));
        block["inserted"]["node-name"].as_str().unwrap().to_owned()
    }

    fn order(&self, host: &Host, command: &str) -> String {
        let said = host.libvirtd.virsh(&["qemu-monitor-command", &self.domain, command]).unwrap();
        assert!(!said.contains("\"error\""), "{command}: {said}");
        said
    }
}

#[test]
fn requests_of_every_kind_are_counted_to_the_octet() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt", "loop");
    let mut host = Host::new();
    let kinds = Kind::all();
    let mut loops = Vec::new();
    let mut devices = String::from("<controller type='scsi' index='0' model='virtio-scsi'/>");
    for (number, kind) in kinds.iter().enumerate() {
        let address =
            format!("<address type='drive' controller='0' bus='0' target='0' unit='{number}'/>");
        let target = format!("sd{}", letters(number));
        devices += &kind.disk(&host, number, (&target, "scsi"), &address, &mut loops);
    }
    let more = shared(kinds.len());
    host.libvirtd.define(&domain("disks", 1, &more, &devices)).unwrap();
    host.libvirtd.virsh(&["start", &uuid(1), "--paused"]).unwrap();
    let index = host.stage.index_by_uuid(&uuid(1));
    let nbd = Nbd::start(&host, 1);
    for (number, kind) in kinds.iter().enumerate() {
        let target = format!("sd{}", letters(number));
        let told = host.stage.disk(index, &target);
        assert_eq!(told["counted_by"], kind.method(), "{kind}: {told}");
        let disk = Disk { index, disk: u32::try_from(told["index"].as_u64().unwrap()).unwrap() };
        let url = nbd.export(&host, &target, number);
        let mut expected = disk.counts(&mut host.stage);
        for (size, octets) in [("512", 512), ("4k", 4096), ("64k", 65_536), ("1M", 1 << 20)] {
            for depth in [1, 32] {
                for is_write in [false, true] {
                    let before = disk.counts(&mut host.stage);
                    bench(&url, REQUESTS, size, depth, is_write);
                    let now = disk.counts(&mut host.stage);
                    let mut moved = [0; 4];
                    let at = usize::from(is_write);
                    (moved[at], moved[at + 2]) = (REQUESTS, REQUESTS * octets);
                    for (sum, moved) in expected.0.iter_mut().zip(moved) {
                        *sum += moved;
                    }
                    let latency = now.0[at + 4] - before.0[at + 4];
                    assert!(latency > 0, "{kind}: {size} depth {depth}, write: {is_write}");
                }
            }
        }
        disk.settles_at(&mut host.stage, expected, &url, *kind);
    }
    let probe = &host.stage.status()["probe"];
    assert_eq!(probe["uncounted_requests"], 0);
    drop(loops);
}

/// What lets others than the guest write to so many SCSI disks, by what QEMU exports.
fn shared(disks: usize) -> String {
    let devices: String = (0..disks)
        .map(|number| {
            format!(
                "<device alias='scsi0-0-0-{number}'><frontend>\
                 <property name='share-rw' type='bool' value='true'/></frontend></device>"
            )
        })
        .collect();
    format!(
        "<vcpu>1</vcpu>\
         <override xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>{devices}</override>"
    )
}

fn letters(number: usize) -> String {
    let letter = |number: usize| char::from(b'a' + u8::try_from(number).unwrap());
    if number < 26 {
        letter(number).to_string()
    } else {
        format!("{}{}", letter(number / 26 - 1), letter(number % 26))
    }
}

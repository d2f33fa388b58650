//! The I/O of the disks of real domains, made by their own QEMU, against what was asked of it.

#![cfg(feature = "libvirt")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../lab/mod.rs"]
mod lab;

use std::{fmt, path::Path, process::Command};

use lab::libvirt::{Host, domain, uuid};
use xtask::lab::{LoopDevice, PATIENCE, wait_until};

/// vmStorageReadIOs to vmStorageWriteLatency.
const COLUMNS: [u32; 6] = [13, 14, 15, 16, 17, 18];
/// Requests of each step.
const REQUESTS: u64 = 500;

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

    /// What is to count it.
    fn method(self) -> &'static str {
        match (self.cache, self.source, self.io) {
            ("writeback", _, "io_uring") => "io_uring",
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

impl Counts {
    fn since(self, before: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at] - before.0[at]))
    }
}

fn counts(host: &mut Host, index: u32, disk: u32) -> Counts {
    Counts(COLUMNS.map(|column| host.stage.number(&[7, 1, column], &[index, disk]).unwrap()))
}

#[test]
fn requests_of_every_kind_are_counted_to_the_octet() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt", "loop");
    let mut host = Host::new();
    let kinds = Kind::all();
    let mut loops = Vec::new();
    let mut devices = String::from("<controller type='scsi' index='0' model='virtio-scsi'/>");
    for (number, kind) in kinds.iter().enumerate() {
        let (format, source) = match kind.source {
            Source::Raw => {
                let path = host.image(&format!("{number}.raw"), &["-f", "raw"], "8M");
                std::fs::write(&path, vec![7; 8 << 20]).unwrap();
                ("raw", format!("<source file='{path}'/>"))
            }
            Source::Qcow2 => {
                let path = host.image(&format!("{number}.qcow2"), &["-f", "qcow2"], "8M");
                ("qcow2", format!("<source file='{path}'/>"))
            }
            Source::Backed => {
                let base = host.image(&format!("{number}.base"), &["-f", "raw"], "8M");
                std::fs::write(&base, vec![7; 8 << 20]).unwrap();
                let options = ["-f", "qcow2", "-F", "raw", "-b", &base];
                let path = host.image(&format!("{number}.over"), &options, "8M");
                ("qcow2", format!("<source file='{path}'/>"))
            }
            Source::Loop => {
                let path = host.image(&format!("{number}.loop"), &["-f", "raw"], "8M");
                std::fs::write(&path, vec![7; 8 << 20]).unwrap();
                let device = LoopDevice::of(Path::new(&path)).unwrap();
                let source = format!("<source dev='{}'/>", device.path().display());
                loops.push(device);
                ("raw", source)
            }
        };
        let kind_of_source = if kind.source == Source::Loop { "block" } else { "file" };
        devices += &format!(
            "<disk type='{kind_of_source}' device='disk'>\
             <driver name='qemu' type='{format}' cache='{}' io='{}'/>{source}\
             <target dev='sd{}' bus='scsi'/>\
             <address type='drive' controller='0' bus='0' target='0' unit='{number}'/></disk>",
            kind.cache,
            kind.io,
            letters(number)
        );
    }
    // So that what QEMU exports can be written to, and not only by the guest.
    let shared: String = (0..kinds.len())
        .map(|number| {
            format!(
                "<device alias='scsi0-0-0-{number}'><frontend>\
                 <property name='share-rw' type='bool' value='true'/></frontend></device>"
            )
        })
        .collect();
    let more = format!(
        "<vcpu>1</vcpu>\
         <override xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>{shared}</override>"
    );
    host.libvirtd.define(&domain("disks", 1, &more, &devices)).unwrap();
    host.libvirtd.virsh(&["start", &uuid(1)]).unwrap();
    let index = host.index(&uuid(1));
    let socket = host.images.path().join("nbd");
    let path = socket.to_str().unwrap();
    let monitor = |host: &Host, command: &str| {
        host.libvirtd.virsh(&["qemu-monitor-command", &uuid(1), command]).unwrap()
    };
    let start = format!(
        r#"{{"execute":"nbd-server-start","arguments":{{"addr":{{"type":"unix","data":{{"path":"{path}"}}}}}}}}"#
    );
    println!("{}", monitor(&host, &start));
    let all = host.stage.status()["vms"][0]["disks"].as_array().unwrap().clone();
    for (number, kind) in kinds.iter().enumerate() {
        let target = format!("sd{}", letters(number));
        let disk = all.iter().find(|disk| disk["target"] == target.as_str()).unwrap();
        assert_eq!(disk["counted_by"], kind.method(), "{kind}: {disk}");
        let add = format!(
            r#"{{"execute":"block-export-add","arguments":{{"type":"nbd","id":"e{number}","node-name":"libvirt-{}-format","name":"{target}","writable":true}}}}"#,
            kinds.len() - number
        );
        assert!(!monitor(&host, &add).contains("error"));
        let disk = u32::try_from(disk["index"].as_u64().unwrap()).unwrap();
        for (what, options) in [
            ("4k read depth 32", &["-s", "4k", "-d", "32"][..]),
            ("4k write depth 32", &["-s", "4k", "-d", "32", "-w"]),
            ("512 read", &["-s", "512", "-d", "1"]),
            ("512 write", &["-s", "512", "-d", "1", "-w"]),
            ("1M read", &["-s", "1M", "-d", "8"]),
            ("1M write", &["-s", "1M", "-d", "8", "-w"]),
        ] {
            let before = counts(&mut host, index, disk);
            let url = format!("nbd+unix:///{target}?socket={path}");
            let bench = Command::new("qemu-img")
                .args(["bench", "-f", "raw", "-c", &REQUESTS.to_string()])
                .args(options)
                .arg(&url)
                .output()
                .unwrap();
            assert!(bench.status.success(), "{}", String::from_utf8_lossy(&bench.stderr));
            let moved = counts(&mut host, index, disk).since(before);
            println!("{kind}: {what}: {:?}", moved.0);
        }
    }
}

fn letters(number: usize) -> String {
    let letter = |number: usize| char::from(b'a' + u8::try_from(number).unwrap());
    if number < 26 {
        letter(number).to_string()
    } else {
        format!("{}{}", letter(number / 26 - 1), letter(number % 26))
    }
}

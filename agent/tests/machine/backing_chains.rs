//! Backing chains of a QEMU without libvirt, whose command line names only the top image.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::symlink, process::Command};

use crate::lab::{sandbox::temporary, stage::Stage, strace::Strace};
use tempfile::TempDir;
use xtask::lab::{Accelerator, PATIENCE, Qemu, Qmp, missing, wait_until};

/// vmStorageReadIOs, vmStorageWriteIOs, vmStorageReadOctets, vmStorageWriteOctets.
const COLUMNS: [u32; 4] = [13, 14, 15, 16];
const SIZE: u64 = 4 << 20;

struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Self(temporary())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn raw(&self, name: &str) -> String {
        fs::write(self.path(name), vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        self.path(name)
    }

    /// Creates a qcow2 image whose header names `backing` in these words.
    fn over(&self, name: &str, backing: &str, format: &str) -> String {
        let mut make = Command::new("qemu-img");
        make.args(["create", "-q", "-f", "qcow2", "-b", backing, "-F", format, &self.path(name)]);
        assert!(make.current_dir(self.0.path()).status().unwrap().success());
        self.path(name)
    }
}

fn counts(stage: &mut Stage, index: u32, disk: u32) -> [u64; 4] {
    COLUMNS.map(|column| stage.number(&[7, 1, column], &[index, disk]).unwrap())
}

/// QEMU with these drives, paused, with its monitor.
fn qemu(images: &Images, drives: &[String]) -> (Qemu, Qmp) {
    let socket = images.path("qmp");
    let accelerator = if missing("kvm").is_none() { Accelerator::Kvm } else { Accelerator::Tcg };
    let monitor = format!("unix:{socket},server=on,wait=off");
    let mut more = vec!["-S", "-qmp", &monitor];
    more.extend(drives.iter().flat_map(|drive| ["-drive", drive]));
    let qemu = Qemu::start("chain", accelerator, &more).unwrap();
    let qmp = Qmp::connect(socket.as_ref()).unwrap();
    (qemu, qmp)
}

/// Waits until the disks are counted by `dio`, and returns vmIndex.
fn counted(stage: &Stage, qemu: &Qemu) -> u32 {
    wait_until(PATIENCE, "the disks are counted", || {
        let index = stage.index_of(qemu.child.pid())?;
        (stage.disk(index, "over")["counted_by"] == "dio").then_some(index)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()))
}

#[test]
fn images_created_and_committed_through_qmp_stay_the_disks() {
    require!("ebpf", "snmpd", "qemu");
    let mut stage = Stage::new();
    // The scan races with QEMU's writing of the header: several rounds.
    for round in 0..4 {
        let images = Images::new();
        let base = images.raw("base.raw");
        let over = images.over("over.qcow2", &base, "raw");
        let other = images.raw("other.raw");
        let drives = [
            format!("file={over},if=none,id=over,cache=none"),
            format!("file={other},format=raw,if=none,id=other,cache=none"),
        ];
        let (qemu, mut qmp) = qemu(&images, &drives);
        let index = counted(&stage, &qemu);
        let disk = u32::try_from(stage.disk(index, "over")["index"].as_u64().unwrap()).unwrap();
        let mut writes = |qmp: &mut Qmp, what: &str| {
            let before = counts(&mut stage, index, disk);
            for place in 0..20 {
                qmp.request("over", &format!("write {}k 64k", place * 64)).unwrap();
            }
            let least = before[3] + 20 * 65_536;
            stage.wait_for(what, &[7, 1, 16], &[index, disk], |octets| octets >= Some(least));
        };
        writes(&mut qmp, "what is written before");
        let top = images.path("top.qcow2");
        qmp.execute(&format!(
            r#"{{"execute":"blockdev-snapshot-sync","arguments":{{"device":"over","snapshot-file":"{top}","format":"qcow2"}}}}"#
        ))
        .unwrap();
        writes(&mut qmp, "what is written to the new image");
        // Commits the whole chain into the base image, which then is the disk's only image.
        qmp.execute(&format!(
            r#"{{"execute":"block-commit","arguments":{{"job-id":"commit","device":"over","base":"{base}"}}}}"#
        ))
        .unwrap();
        wait_until(PATIENCE, "the commit is ready", || {
            qmp.execute(r#"{"execute":"block-job-complete","arguments":{"device":"commit"}}"#).ok()
        })
        .unwrap();
        wait_until(PATIENCE, "the commit is done", || {
            let jobs = qmp.execute(r#"{"execute":"query-block-jobs"}"#).unwrap();
            (!jobs.contains("commit")).then_some(())
        })
        .unwrap();
        writes(&mut qmp, "what is written after the commit");
        // A hot-added image makes the agent scan the process again.
        let hot = images.raw("hot.raw");
        let add = format!("drive_add 0 file={hot},format=raw,if=none,id=hot,cache=none");
        qmp.monitor(&add).unwrap();
        qmp.request("hot", "write 0 4k").unwrap();
        for _ in 0..20 {
            writes(&mut qmp, "what is written after a scan");
        }
        println!("round {round}");
    }
}

#[test]
fn a_backing_chain_is_read_from_the_image_headers() {
    require!("ebpf", "snmpd", "qemu", "strace");
    let images = Images::new();
    let base = images.raw("base.raw");
    // Relative to the symlink through which QEMU opens the image.
    fs::create_dir(images.path("links")).unwrap();
    for (name, leads_to) in [("base.raw", "../base.raw"), ("middle.qcow2", "../middle.qcow2")] {
        symlink(leads_to, images.path(&format!("links/{name}"))).unwrap();
    }
    images.over("middle.qcow2", "base.raw", "raw");
    let over = images.over("over.qcow2", "links/middle.qcow2", "qcow2");
    // The guest of a raw disk can write a forged header.
    let forged = images.raw("forged.raw");
    let header = images.over("header.qcow2", &base, "raw");
    let mut bytes = fs::read(header).unwrap();
    bytes.resize(usize::try_from(SIZE).unwrap(), 0);
    fs::write(&forged, bytes).unwrap();

    let mut stage = Stage::new();
    let drives = [
        format!("file={forged},format=raw,if=none,id=forged,cache=none"),
        format!("file={over},if=none,id=over,cache=none"),
    ];
    let (qemu, mut qmp) = qemu(&images, &drives);
    let index = counted(&stage, &qemu);
    let disks = ["forged", "over"]
        .map(|target| u32::try_from(stage.disk(index, target)["index"].as_u64().unwrap()).unwrap());
    let defined = &[7, 1, 11];
    let steps = Some(SIZE / (1 << 10));
    for disk in disks {
        stage.wait_for("the size of the disk", defined, &[index, disk], |size| size == steps);
    }

    let strace = Strace::of(qemu.child.pid(), images.0.path());
    let first = disks.map(|disk| counts(&mut stage, index, disk));
    let work = |qmp: &mut Qmp| {
        for place in 0..8 {
            qmp.request("over", &format!("read {}k 4k", place * 128)).unwrap();
            qmp.request("over", &format!("write {}k 8k", place * 128 + 64)).unwrap();
        }
    };
    work(&mut qmp);
    // A snapshot taken through QMP puts an image on top: it is part of the disk, too.
    let top = images.over("top.qcow2", &over, "qcow2");
    qmp.execute(&format!(
        r#"{{"execute":"blockdev-snapshot-sync","arguments":{{"device":"over","snapshot-file":"{top}","mode":"existing"}}}}"#
    ))
    .unwrap();
    work(&mut qmp);
    let seen = strace.end(&["base.raw", "middle.qcow2", "over.qcow2", "top.qcow2"]);
    assert_eq!(seen.len(), 4, "{seen:?}");
    let expected: [u64; 4] = std::array::from_fn(|at| seen.values().map(|counts| counts[at]).sum());
    wait_until(PATIENCE, "all is counted", || {
        let now = counts(&mut stage, index, disks[1]);
        let moved: [u64; 4] = std::array::from_fn(|at| now[at] - first[1][at]);
        (moved == expected).then_some(())
    })
    .unwrap_or_else(|error| {
        let now = counts(&mut stage, index, disks[1]);
        panic!("{error}: {now:?} - {:?}, expected {expected:?} of {seen:?}", first[1])
    });
    assert_eq!(counts(&mut stage, index, disks[0]), first[0]);
}

#[test]
fn a_temporary_file_that_takes_the_writes_belongs_to_its_disk() {
    require!("ebpf", "snmpd", "qemu");
    for files in [["a.raw", "over.raw"], ["one.raw", "one.raw"]] {
        temporary_files_belong_to_their_disks(files);
    }
}

fn temporary_files_belong_to_their_disks(files: [&str; 2]) {
    let images = Images::new();
    let mut stage = Stage::new();
    let files = files.map(|name| images.raw(name));
    let drive = |at: usize| {
        let (id, file) = (["a", "over"][at], &files[at]);
        format!("file={file},format=raw,if=none,id={id},cache=none,snapshot=on")
    };
    let (qemu, mut qmp) = qemu(&images, &[0, 1].map(drive));
    let index = counted(&stage, &qemu);
    let disks = ["a", "over"]
        .map(|target| u32::try_from(stage.disk(index, target)["index"].as_u64().unwrap()).unwrap());
    let [of_a, before] = disks.map(|disk| counts(&mut stage, index, disk));
    for place in 0..8 {
        qmp.request("over", &format!("write {}k 64k", place * 64)).unwrap();
    }
    let least = before[3] + 8 * 65_536;
    stage.wait_for("the writes", &[7, 1, 16], &[index, disks[1]], |now| now >= Some(least));
    assert_eq!(counts(&mut stage, index, disks[0]), of_a);
    let vm = stage.vm("index", index).unwrap();
    assert_eq!(vm["disks"].as_array().unwrap().len(), 2, "{vm}");
}

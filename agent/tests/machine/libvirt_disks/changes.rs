//! Disks that change while their VM runs. Its vCPUs do not: its firmware would read from the first disk at any time.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::{Duration, Instant},
};

use xtask::lab::{PATIENCE, wait_until};

use crate::lab::strace::Strace;

use super::{Counts, Disk, Host, Nbd, bench, domain, shared, uuid};

/// A new image is known to be the disk's so soon after the first request on it.
const SOON: Duration = Duration::from_millis(200);

/// The most often that the requests of a disk are repeated until the agent was away twice.
const ROUNDS: u32 = 50;

/// A disk of a SCSI controller.
fn scsi(source: &str, format: &str, cache: &str, number: u32) -> String {
    format!(
        "<disk type='file' device='disk'><driver name='qemu' type='{format}' cache='{cache}'/>\
         <source file='{source}'/><target dev='sd{}' bus='scsi'/>\
         <address type='drive' controller='0' bus='0' target='0' unit='{number}'/></disk>",
        super::letters(number as usize)
    )
}

const CONTROLLER: &str = "<controller type='scsi' index='0' model='virtio-scsi'/>";

/// One request of a domain's SCSI disk, as its guest would make it.
fn request(host: &Host, domain: u32, disk: u32, request: &str) {
    let command = format!("qemu-io -d scsi0-0-0-{disk} \"{request}\"");
    let done = host.libvirtd.virsh(&["qemu-monitor-command", &uuid(domain), "--hmp", &command]);
    let said = done.unwrap();
    assert!(!said.contains("failed") && !said.contains("rror"), "{request}: {said}");
}

#[test]
fn what_a_disk_is_made_of_changes_and_no_request_is_lost() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt", "strace");
    for cache in ["none", "writeback"] {
        let mut host = Host::new();
        let base = host.image("base.raw", &["-f", "raw"], "4M");
        std::fs::write(&base, vec![7; 4 << 20]).unwrap();
        let devices = format!("{CONTROLLER}{}", scsi(&base, "raw", cache, 0));
        host.libvirtd.define(&domain("changes", 1, "<vcpu>1</vcpu>", &devices)).unwrap();
        host.libvirtd.virsh(&["start", &uuid(1), "--paused"]).unwrap();
        let disk = Disk::of(&host, 1, "sda");
        let pid = host.libvirtd.pid("changes").unwrap();
        let strace = Strace::of(pid, host.images.path());
        let first = disk.counts(&mut host.stage);
        let virsh = |host: &Host, arguments: &[&str]| {
            let domain = uuid(1);
            let mut words = arguments.to_vec();
            words.insert(1, &domain);
            host.libvirtd.virsh(&words).unwrap()
        };
        let snapshot = |host: &Host, image: &str| {
            let spec = format!("sda,file={image}");
            let options = ["--disk-only", "--no-metadata", "--reuse-external", "--diskspec", &spec];
            virsh(host, &[&["snapshot-create-as"][..], &options].concat())
        };
        let work = |host: &mut Host| {
            for place in 0..8 {
                let octets = place * 64;
                request(host, 1, 0, &format!("read {octets}k 4k"));
                request(host, 1, 0, &format!("write {octets}k 8k"));
            }
        };

        work(&mut host);
        // An external snapshot: the disk is a new image on top of the old one.
        let before = disk.counts(&mut host.stage);
        // The images are there already: what QEMU does while it makes one is not the disk's.
        let over = host.image("over.qcow2", &["-f", "qcow2", "-b", &base, "-F", "raw"], "4M");
        snapshot(&host, &over);
        request(&host, 1, 0, "write 0 4k");
        let start = Instant::now();
        wait_until(PATIENCE, "the new image is the disk's", || {
            (disk.counts(&mut host.stage).0[1] > before.0[1]).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", host.stage.agent.log()));
        assert!(start.elapsed() < SOON, "{:?}\n{}", start.elapsed(), host.stage.agent.log());
        work(&mut host);
        // A commit: what is in the new one goes into the old one, which is the disk again.
        virsh(&host, &["blockcommit", "sda", "--active", "--wait", "--pivot"]);
        work(&mut host);
        // A copy to yet another image, which is the disk then.
        let copy = host.image("copy.raw", &["-f", "raw"], "4M");
        let options =
            ["blockcopy", "sda", &copy, "--reuse-external", "--wait", "--pivot", "--transient-job"];
        virsh(&host, &options);
        work(&mut host);
        // A snapshot and a pull: what is below comes up into the new image.
        let again = host.image("again.qcow2", &["-f", "qcow2", "-b", &copy, "-F", "raw"], "4M");
        snapshot(&host, &again);
        work(&mut host);
        virsh(&host, &["blockpull", "sda", "--wait"]);
        work(&mut host);

        let seen = strace.end(&["base.raw", "over.qcow2", "copy.raw", "again.qcow2"]);
        let sum = |at: usize| seen.values().map(|counts| counts[at]).sum::<u64>();
        let expected = [sum(0), sum(1), sum(2), sum(3)];
        let moved = wait_until(PATIENCE, "all is counted", || {
            let now = disk.counts(&mut host.stage);
            let moved: [u64; 4] = std::array::from_fn(|at| now.0[at] - first.0[at]);
            (moved == expected).then_some(moved)
        })
        .unwrap_or_else(|error| {
            let now = disk.counts(&mut host.stage);
            panic!("{error}: {cache}: {now:?} - {first:?}, expected {expected:?} of {seen:?}")
        });
        println!("{cache}: {moved:?} of {seen:?}");
    }
}

#[test]
fn disks_that_come_and_go_and_images_that_vms_share() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt");
    let mut host = Host::new();
    let base = host.image("base.raw", &["-f", "raw"], "4M");
    std::fs::write(&base, vec![7; 4 << 20]).unwrap();
    for number in [1, 2] {
        let options = ["-f", "qcow2", "-F", "raw", "-b", &base];
        let over = host.image(&format!("over{number}"), &options, "4M");
        let devices = format!("{CONTROLLER}{}", scsi(&over, "qcow2", "none", 0));
        let name = format!("shares{number}");
        host.libvirtd.define(&domain(&name, number, "<vcpu>1</vcpu>", &devices)).unwrap();
        host.libvirtd.virsh(&["start", &uuid(number), "--paused"]).unwrap();
    }
    let [one, two] = [1, 2].map(|number| Disk::of(&host, number, "sda"));
    let [before_one, before_two] = [one, two].map(|disk| disk.counts(&mut host.stage));
    // Nothing of it is in the images on top.
    for _ in 0..10 {
        request(&host, 1, 0, "read 0 4k");
    }
    let reads = |now: Counts, before: Counts| now.0[0] - before.0[0];
    let now = one.counts(&mut host.stage);
    assert!((10..=11).contains(&reads(now, before_one)), "{now:?} {before_one:?}");
    assert_eq!(two.counts(&mut host.stage).0[..4], before_two.0[..4]);

    // A disk that is plugged in is counted from its first request on.
    let image = host.image("plugged.raw", &["-f", "raw"], "4M");
    let xml = host.images.path().join("plugged.xml");
    std::fs::write(&xml, scsi(&image, "raw", "none", 1)).unwrap();
    let xml = xml.to_str().unwrap();
    host.libvirtd.virsh(&["attach-device", &uuid(1), xml, "--live"]).unwrap();
    let plugged = Disk::of(&host, 1, "sdb");
    let first = plugged.counts(&mut host.stage);
    let read = |host: &mut Host, times: u64| {
        for _ in 0..times {
            request(host, 1, 1, "write 0 4k");
        }
        plugged.counts(&mut host.stage).0[1] - first.0[1]
    };
    assert_eq!(read(&mut host, 5), 5);
    // And again under its old name: what it had before is not forgotten.
    host.libvirtd.virsh(&["detach-device", &uuid(1), xml, "--live"]).unwrap();
    host.stage.wait_for("it is gone", &[7, 1, 14], &[plugged.index, plugged.disk], |n| n.is_none());
    host.libvirtd.virsh(&["attach-device", &uuid(1), xml, "--live"]).unwrap();
    assert_eq!(Disk::of(&host, 1, "sdb").disk, plugged.disk);
    assert_eq!(read(&mut host, 5), 10);
}

#[test]
fn no_request_is_lost_while_the_agent_is_away() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt");
    let requests: u64 =
        std::env::var("KVMETER_REQUESTS").map_or(40_000, |number| number.parse().unwrap());
    let mut host = Host::new();
    let mut devices = CONTROLLER.to_owned();
    for (number, cache) in [(0, "none"), (1, "writeback")] {
        let image = host.image(&format!("{cache}.raw"), &["-f", "raw"], "16M");
        std::fs::write(&image, vec![7; 16 << 20]).unwrap();
        devices += &scsi(&image, "raw", cache, number);
    }
    host.libvirtd.define(&domain("works", 1, &shared(2), &devices)).unwrap();
    host.libvirtd.virsh(&["start", &uuid(1), "--paused"]).unwrap();
    let disks = ["sda", "sdb"].map(|target| Disk::of(&host, 1, target));
    let nbd = Nbd::start(&host, 1);
    let urls = [("sda", 0), ("sdb", 1)].map(|(name, number)| nbd.export(&host, name, number));
    let before = disks.map(|disk| disk.counts(&mut host.stage));
    let share = requests / 4;
    let times_away = AtomicU32::new(0);
    // A fast machine has done its share before the agent is back: the work goes on until the agent was away twice.
    let work = |url: &str, is_write| {
        let mut done = 0;
        for _ in 0..ROUNDS {
            bench(url, share, "4k", 8, is_write);
            done += share;
            if times_away.load(Relaxed) > 1 {
                break;
            }
        }
        done
    };
    let (away, done) = std::thread::scope(|scope| {
        let works: Vec<_> = urls
            .iter()
            .flat_map(|url| [false, true].map(|is_write| (url, is_write)))
            .map(|(url, is_write)| scope.spawn(move || work(url, is_write)))
            .collect();
        while works.iter().any(|work| !work.is_finished()) {
            // Sometimes it ends in order, sometimes not.
            if times_away.load(Relaxed).is_multiple_of(2) {
                host.stage.agent.end().unwrap();
            } else {
                host.stage.agent.kill();
            }
            host.stage.agent.start().unwrap();
            times_away.fetch_add(1, Relaxed);
        }
        let done: Vec<u64> = works.into_iter().map(|work| work.join().unwrap()).collect();
        (times_away.load(Relaxed), done)
    });
    println!("{} requests; the agent was away {away} times", done.iter().sum::<u64>());
    assert!(away > 1);
    for ((disk, before), done) in disks.into_iter().zip(before).zip(done.chunks(2)) {
        let [reads, writes] = done.try_into().unwrap();
        assert!(reads >= share && writes >= share);
        let expected = [reads, writes, reads * 4096, writes * 4096];
        host.stage
            .wait_for("it is counted", &[7, 1, 13], &[disk.index, disk.disk], |n| n.is_some());
        let now = disk.counts(&mut host.stage);
        let moved: [u64; 4] = std::array::from_fn(|at| now.0[at] - before.0[at]);
        assert_eq!(moved, expected);
    }
}

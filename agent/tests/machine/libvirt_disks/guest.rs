//! Requests of a guest: Linux, with fio on its virtio disks.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use xtask::lab::{DebianKernel, Initramfs, wait_until};

use crate::lab::{libvirt::uuid, strace::Strace};

use super::{Disk, Host, Kind, Source, letters};

/// For each disk and depth.
const REQUESTS: u32 = 40;
/// QEMU runs the guest without KVM, and strace stops it at each request.
const LIMIT: Duration = Duration::from_secs(240);
/// How often more requests are made, until the kernel has used the memory of those whose end it has not told.
const ROUNDS: u32 = 60;

/// What QEMU says of its requests to io_uring: `luring_co_submit bs … fd 9 offset 0 nbytes 512 type 1`, and
/// `luring_process_completion … luringcb 0x… ret 512`.
struct Trace(std::path::PathBuf);

impl Trace {
    fn of(host: &Host) -> Self {
        let log = host.images.path().join("trace");
        let order = |line: &str| {
            host.libvirtd.virsh(&["qemu-monitor-command", &uuid(1), "--hmp", line]).unwrap()
        };
        order(&format!("logfile {}", log.display()));
        order("trace-event luring_co_submit on");
        Self(log)
    }

    /// As those of [`Strace`], by file.
    fn counts(&self, pid: u32) -> BTreeMap<String, [u64; 4]> {
        let mut counts: BTreeMap<String, [u64; 4]> = BTreeMap::new();
        for line in fs::read_to_string(&self.0).unwrap_or_default().lines() {
            let field = |name: &str| {
                let mut words = line.split_whitespace().skip_while(|word| *word != name);
                words.nth(1).and_then(|word| word.parse::<u64>().ok())
            };
            let (Some(fd), Some(octets), Some(kind)) =
                (field("fd"), field("nbytes"), field("type"))
            else {
                continue;
            };
            // `QEMU_AIO_READ` and `QEMU_AIO_WRITE`
            if kind == 1 || kind == 2 {
                let file = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap();
                let counts = counts.entry(file.to_string_lossy().into_owned()).or_default();
                counts[usize::from(kind == 2)] += 1;
                counts[usize::from(kind == 2) + 2] += octets;
            }
        }
        counts
    }
}

/// Reads and writes of every size, one at a time and 32.
fn fio(disks: usize) -> String {
    let mut jobs = format!(
        "[global]\nioengine=libaio\ndirect=1\nrw=randrw\nthread=1\nsize=8m\nnumber_ios={REQUESTS}\n\
         bssplit=512/25:4k/25:64k/25:1m/25\nrandrepeat=1\n"
    );
    for depth in [1, 32] {
        for disk in 0..disks {
            let letters = letters(disk);
            jobs += &format!("[{depth}-{letters}]\nfilename=/dev/vd{letters}\niodepth={depth}\n");
            // Each has memory for all that it has under way.
            jobs += if disk % 8 == 0 { "stonewall\n" } else { "" };
        }
    }
    jobs
}

#[test]
fn requests_of_a_linux_guest_are_counted_as_qemu_makes_them() {
    xtask::require!("ebpf", "snmpd", "qemu", "libvirt", "loop", "strace", "kernels", "fio");
    let mut host = Host::new();
    let kernel = DebianKernel::all().pop().unwrap();
    let files = Initramfs::of(&kernel).unwrap();
    files.add_program(Path::new("/usr/bin/fio"), "bin").unwrap();
    let kinds = Kind::all();
    let jobs = host.images.path().join("jobs");
    fs::write(&jobs, fio(kinds.len())).unwrap();
    files.add(&jobs, "jobs").unwrap();
    let initramfs = files
        .pack("fio --minimal /jobs && echo all is done || echo fio failed; while true; do sleep 9999; done")
        .unwrap();

    let mut loops = Vec::new();
    let mut devices = String::new();
    for (number, kind) in kinds.iter().enumerate() {
        let target = format!("vd{}", letters(number));
        devices += &kind.disk(&host, number, (&target, "virtio"), "", &mut loops);
    }
    // The kernel cuts what is longer than 1 MiB for a block device.
    let unmerged: String = (0..kinds.len())
        .filter(|number| kinds[*number].source == Source::Loop)
        .map(|number| {
            format!(
                "<device alias='virtio-disk{number}'><frontend>\
                 <property name='request-merging' type='bool' value='false'/></frontend></device>"
            )
        })
        .collect();
    let serial = host.images.path().join("serial");
    let xml = format!(
        "<domain type='qemu'><name>linux</name><uuid>{}</uuid><memory unit='MiB'>1536</memory>\
         <vcpu>1</vcpu><cpu mode='maximum'/><features><acpi/></features>\
         <override xmlns='http://libvirt.org/schemas/domain/qemu/1.0'>{unmerged}</override>\
         <os><type arch='x86_64' machine='pc'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>{}</cmdline></os>\
         <devices><emulator>/usr/bin/qemu-system-x86_64</emulator>{devices}\
         <serial type='file'><source path='{}'/></serial></devices></domain>",
        uuid(1),
        kernel.image().display(),
        initramfs.display(),
        DebianKernel::COMMAND_LINE,
        serial.display(),
    );
    host.libvirtd.define(&xml).unwrap();
    host.libvirtd.virsh(&["start", &uuid(1), "--paused"]).unwrap();
    let disks: Vec<Disk> = (0..kinds.len())
        .map(|number| Disk::of(&host, 1, &format!("vd{}", letters(number))))
        .collect();
    let pid = host.libvirtd.pid("linux").unwrap();
    let strace = Strace::of(pid, host.images.path());
    let trace = Trace::of(&host);
    let first: Vec<_> = disks.iter().map(|disk| disk.counts(&mut host.stage)).collect();
    host.libvirtd.virsh(&["resume", &uuid(1)]).unwrap();
    wait_until(LIMIT, "the guest has done its requests", || {
        let said = fs::read_to_string(&serial).unwrap_or_default();
        assert!(!said.contains("Kernel panic") && !said.contains("fio failed"), "{said}");
        said.contains("all is done").then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {}", fs::read_to_string(&serial).unwrap_or_default()));

    let mut names: Vec<String> = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        names.extend(match kind.source {
            Source::Raw => vec![format!("/{number}.raw")],
            Source::Qcow2 => vec![format!("/{number}.qcow2")],
            Source::Backed => vec![format!("/{number}.over"), format!("/{number}.base")],
            Source::Loop => vec![],
        });
    }
    names.extend(loops.iter().map(|device| device.path().display().to_string()));
    let all: Vec<&str> = names.iter().map(String::as_str).collect();
    for (number, kind) in kinds.iter().enumerate() {
        // The loop devices are those of the last kinds.
        let its = |file: &str| match kind.source {
            Source::Loop => {
                let at = number + loops.len() - kinds.len();
                file == loops[at].path().to_str().unwrap()
            }
            _ => [".raw", ".qcow2", ".over", ".base"]
                .iter()
                .any(|end| file.ends_with(&format!("/{number}{end}"))),
        };
        let mut seen = (0..ROUNDS).map(|round| {
            if round > 0 {
                let command = format!("qemu-io -d virtio-disk{number} \"read 0 4k\"");
                for _ in 0..8 {
                    let line = ["qemu-monitor-command", &uuid(1), "--hmp", &command];
                    host.libvirtd.virsh(&line).unwrap();
                }
            }
            let counts = strace.counts(&all).into_iter().chain(trace.counts(pid));
            let expected = counts
                .filter(|(file, _)| its(file))
                .fold([0; 4], |sum, (_, counts)| std::array::from_fn(|at| sum[at] + counts[at]));
            let now = disks[number].counts(&mut host.stage);
            let moved: [u64; 4] = std::array::from_fn(|at| now.0[at] - first[number].0[at]);
            (round, moved, expected)
        });
        let is_late = kind.io == "native" || kind.method() == "bdev";
        let (round, moved, expected) = seen
            .find(|(round, moved, expected)| moved == expected || (!is_late && *round > 0))
            .unwrap_or_else(|| panic!("{kind}: it is not counted"));
        println!("{kind}: {moved:?} after {round} rounds more");
        assert_eq!(moved, expected, "{kind}");
        assert!(moved[0] >= 10 && moved[1] >= 10, "{kind}: {moved:?}");
    }
}

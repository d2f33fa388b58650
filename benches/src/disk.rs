//! What counting disks costs: within the programs, for fio on the host, and for system calls of others.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use aya::sys::{Stats, enable_stats};
use kvmeter::{inventory::FileIdentity, probe::Method};
use kvmeter_common::ImageKey;
use rustix::fs::OFlags;
use xtask::lab::LoopDevice;

use crate::{
    measure::{Samples, Subject, compare},
    switch::{Empty, RunTime},
    tracked::{OwnThread, Tracked},
};

/// Requests of a round.
const REQUESTS: u64 = 500;
const BLOCK: usize = 4096;
/// How long fio runs with and without the hooks in each round.
const FIO_S: u32 = 2;
/// fio has at least this share of its IOPS with the hooks.
const TARGET: f64 = 0.99;

/// The programs with the requests of a VM that each sees.
const WITHIN: [(&str, Method); 6] = [
    ("iomap_dio_rw_begin", Method::Dio),
    ("iomap_dio_complete", Method::Dio),
    ("block_bio_queue", Method::Bdev),
    ("block_rq_complete", Method::Bdev),
    ("sys_enter", Method::Syscall),
    ("sys_exit", Method::Syscall),
];

/// Measures and prints.
pub(crate) fn run(rounds: u32) -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR"))?;
    let image = dir.path().join("image");
    fs::write(&image, vec![7; 64 << 20])?;
    within(rounds, &image)?;
    system_calls(rounds, &image)?;
    host(rounds.min(20), &image)
}

/// 4 KiB at an address that `O_DIRECT` takes.
#[repr(align(4096))]
struct Page([u8; BLOCK]);

fn open(path: &Path, flags: OFlags) -> anyhow::Result<File> {
    let flags = i32::try_from(flags.bits())?;
    Ok(OpenOptions::new().read(true).custom_flags(flags).open(path)?)
}

/// Time within each program over an empty one, for requests of a VM and for those of others.
fn within(rounds: u32, image: &Path) -> anyhow::Result<()> {
    let _statistics =
        enable_stats(Stats::RunTime).context("BPF statistics need Linux 5.8 and root")?;
    let device = LoopDevice::of(image)?;
    let mut page = Box::new(Page([0; BLOCK]));
    println!("\n{:<28} {:>26} {:>26}", "ns a run, median (quartiles)", "of a VM", "of others");
    for (name, method) in WITHIN {
        let (path, flags) = match method {
            Method::Bdev => (device.path(), OFlags::DIRECT),
            Method::Dio => (image, OFlags::DIRECT),
            Method::Syscall | Method::IoUring | Method::Vfs | Method::Aio => {
                (image, OFlags::empty())
            }
        };
        let file = open(path, flags)?;
        let figures = [true, false].map(|is_vm| -> anyhow::Result<Samples> {
            let tracked = Tracked::with(&[method])?;
            if is_vm {
                tracked.track(&OwnThread::first())?;
                if method == Method::Bdev {
                    let device = rustix::fs::fstat(&file)?.st_rdev;
                    let [major, minor] = [rustix::fs::major(device), rustix::fs::minor(device)];
                    let device = FileIdentity::kernel_device(major, minor);
                    let key = ImageKey { vm: tracked.vm.0, device, file: ImageKey::NO_FILE };
                    tracked.records.claim_image(key, method.layer()).context("no record")?;
                }
            }
            let empty = Empty::attach(name)?;
            let program = tracked.program(name)?;
            let mut samples = Samples::default();
            for _ in 0..rounds {
                let before = [RunTime::of(program)?, RunTime::of(empty.id)?];
                for at in 0..REQUESTS {
                    file.read_exact_at(&mut page.0, at * BLOCK as u64)?;
                }
                let after = [RunTime::of(program)?, RunTime::of(empty.id)?];
                let [own, floor] = [0, 1].map(|at| after[at].ns_per_run_since(before[at]));
                samples.push(own - floor);
            }
            Ok(samples)
        });
        let [vm, others] = figures;
        println!("{name:<28} {:>26} {:>26}", vm?.to_string(), others?.to_string());
    }
    Ok(())
}

/// What a system call of a process that is no VM takes, without the hooks of calls and with them.
fn system_calls(rounds: u32, image: &Path) -> anyhow::Result<()> {
    let file = open(image, OFlags::empty())?;
    let mut samples = BTreeMap::<String, Samples>::new();
    for _ in 0..rounds.min(30) {
        for hooks in [&[][..], &[Method::Syscall]] {
            let _tracked = Tracked::with(hooks)?;
            let with = if hooks.is_empty() { "without" } else { "with `syscall`" };
            let mut page = [0; BLOCK];
            let mut subjects = [
                Subject::new(format!("getppid, {with}"), rustix::process::getppid),
                Subject::new(format!("pread of 4 KiB in the page cache, {with}"), || {
                    file.read_at(&mut page, 0)
                }),
            ];
            compare(&mut subjects, 3);
            for Subject { name, samples: of_round, .. } in subjects {
                samples.entry(name).or_default().push(of_round.median());
            }
        }
    }
    println!(
        "\n{:<58} {:>26}",
        "a system call of a process that is no VM", "ns: median (quartiles)"
    );
    for (name, samples) in &samples {
        println!("{name:<58} {:>26}", samples.to_string());
    }
    Ok(())
}

/// IOPS of fio, which is no VM, with the hooks and without.
fn host(rounds: u32, image: &Path) -> anyhow::Result<()> {
    println!(
        "\n{:<44} {:>12} {:>26}",
        "fio on the host, 4 KiB, depth 32", "IOPS", "ratio with the hooks"
    );
    let device = LoopDevice::of(image)?;
    // The disk below the image, of which fio only reads.
    let disk = below(image)?;
    for (what, path, engine, direct, methods) in [
        (
            "block device, direct, libaio: `bdev`",
            disk.as_deref().unwrap_or_else(|| Path::new("/dev")),
            "libaio",
            "1",
            &[Method::Bdev][..],
        ),
        ("file, direct, libaio: `dio`", image, "libaio", "1", &[Method::Dio]),
        ("loop device in memory, direct: `bdev`", device.path(), "libaio", "1", &[Method::Bdev]),
        ("file, page cache, psync: `syscall`", image, "psync", "0", &[Method::Syscall]),
        ("file, page cache, io_uring: `io_uring`", image, "io_uring", "0", &[Method::IoUring]),
    ] {
        if path.is_dir() {
            println!("({what} is left out: no device in /dev is the one below, and may be opened)");
            continue;
        }
        let (mut iops, mut ratios) = (Samples::default(), Samples::default());
        for round in 0..rounds {
            // Which one is first takes turns, too.
            let mut pair = [0.0; 2];
            for at in if round % 2 == 0 { [0, 1] } else { [1, 0] } {
                let _tracked = Tracked::with(if at == 0 { &[] } else { methods })?;
                pair[at] = fio(path, engine, direct)?;
            }
            iops.push(pair[0]);
            ratios.push(pair[1] / pair[0]);
        }
        println!("{what:<44} {:>12.0} {:>26}", iops.median(), ratio(&ratios));
        if direct == "1" {
            let verdict = if ratios.median() >= TARGET { "met" } else { "MISSED" };
            println!("target  {what}: {:.3}, at least {TARGET}: {verdict}", ratios.median());
        }
    }
    Ok(())
}

/// The block device on which a file lies, if it may be opened.
fn below(file: &Path) -> anyhow::Result<Option<PathBuf>> {
    let device = file.metadata()?.dev();
    for entry in fs::read_dir("/dev")? {
        let entry = entry?;
        let found = entry.metadata()?;
        let is_below = found.file_type().is_block_device() && found.rdev() == device;
        if is_below && File::open(entry.path()).is_ok() {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

fn ratio(samples: &Samples) -> String {
    let [low, median, high] = samples.quartiles();
    format!("{median:.3} ({low:.3} to {high:.3})")
}

fn fio(path: &Path, engine: &str, direct: &str) -> anyhow::Result<f64> {
    let fio = Command::new("fio")
        .args([
            "--readonly",
            "--name=host",
            "--rw=randread",
            "--bs=4k",
            "--iodepth=32",
            "--time_based",
        ])
        .args(["--output-format=json", "--size=64m", "--invalidate=0", "--allow_file_create=0"])
        .arg(format!("--filename={}", path.display()))
        .arg(format!("--ioengine={engine}"))
        .arg(format!("--direct={direct}"))
        .arg(format!("--runtime={FIO_S}"))
        .output()
        .context("fio cannot be started")?;
    ensure!(fio.status.success(), "fio: {}", String::from_utf8_lossy(&fio.stderr));
    // Notes may come first.
    let told = String::from_utf8_lossy(&fio.stdout);
    let told = told.find("{\n").map_or("", |begin| &told[begin..]);
    let told: serde_json::Value = serde_json::from_str(told)?;
    told["jobs"][0]["read"]["iops"].as_f64().context("fio tells no IOPS")
}

//! What fio has counted and timed of its own requests, against what is counted of it as if it were a VM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::lab::counted::Counted;
use kvmeter::{counters::DiskIo, probe::Method};
use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, wait_until};

/// A way to make requests of a file.
struct Way {
    engine: &'static str,
    direct: bool,
    method: Method,
}

const WAYS: [Way; 9] = [
    Way { engine: "psync", direct: true, method: Method::Vfs },
    Way { engine: "pvsync", direct: false, method: Method::Vfs },
    Way { engine: "libaio", direct: true, method: Method::Aio },
    Way { engine: "libaio", direct: false, method: Method::Aio },
    Way { engine: "psync", direct: true, method: Method::Dio },
    Way { engine: "libaio", direct: true, method: Method::Dio },
    Way { engine: "pvsync", direct: false, method: Method::Syscall },
    Way { engine: "io_uring", direct: false, method: Method::IoUring },
    Way { engine: "io_uring", direct: true, method: Method::IoUring },
];

impl Way {
    /// fio as the VM, with this method; nothing where the kernel does not have it.
    fn counts(&self, fio: &Fio, image: &Path) -> Option<Counted> {
        // Beside io_uring, iomap's events are for requests that a thread makes.
        let beside = (self.method == Method::IoUring && self.direct).then_some(Method::Dio);
        let methods: Vec<_> = [Some(self.method), beside].into_iter().flatten().collect();
        let counted = Counted::process(fio.0.pid(), &methods);
        counted.probe.image_hooks.availability(self.method).ok()?;
        counted.records.claim_image(counted.key(image), self.method.layer()).unwrap();
        Some(counted)
    }
}

/// fio before its first request.
struct Fio(Child);

impl Fio {
    fn prepared(image: &Path, way: &Way, options: &[&str]) -> Self {
        // It becomes fio, under the same id.
        let mut shell = Command::new("sh");
        shell.args(["-c", "kill -STOP $$; exec fio \"$@\"", "fio", "--name=vm", "--thread"]);
        shell.args(["--output-format=json", "--allow_file_create=0"]);
        shell.args([
            "--invalidate=0",
            "--scramble_buffers=0",
            &format!("--filename={}", image.display()),
        ]);
        shell.args([
            &format!("--ioengine={}", way.engine),
            &format!("--direct={}", u8::from(way.direct)),
        ]);
        shell.args(options).stdout(Stdio::piped());
        let child = Child::start(&mut shell).unwrap();
        wait_until(PATIENCE, "it has stopped", || child.is_stopped().then_some(())).unwrap();
        Self(child)
    }

    /// Its own numbers.
    fn run(mut self) -> Told {
        self.0.signal(Signal::CONT).unwrap();
        let mut told = String::new();
        self.0.process().stdout.as_mut().unwrap().read_to_string(&mut told).unwrap();
        let told = told.find("{\n").map_or("", |begin| &told[begin..]);
        let told: serde_json::Value = serde_json::from_str(told).unwrap();
        let job = &told["jobs"][0];
        assert_eq!(job["error"], 0, "{job}");
        let number = |kind: &str, name: &str| job[kind][name].as_u64().unwrap();
        let kinds = ["read", "write"];
        let requests = kinds.map(|kind| number(kind, "total_ios"));
        let means = kinds.map(|kind| job[kind]["lat_ns"]["mean"].as_f64().unwrap());
        Told {
            numbers: [
                requests[0],
                requests[1],
                number("read", "io_bytes"),
                number("write", "io_bytes"),
            ],
            latencies_ns: [0, 1].map(|at| means[at] * requests[at] as f64),
        }
    }
}

/// What fio says of its requests.
#[derive(Debug)]
struct Told {
    /// Reads and writes, and their octets.
    numbers: [u64; 4],
    /// Sums of reads and of writes.
    latencies_ns: [f64; 2],
}

fn numbers(io: DiskIo) -> [u64; 4] {
    [io.reads, io.writes, io.read_octets, io.write_octets]
}

fn image() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![7; 64 << 20]).unwrap();
    (dir, image)
}

#[test]
fn mixed_requests_of_every_size_are_counted_to_the_octet() {
    require!("ebpf", "fio");
    let sizes = "--bssplit=512/25:4k/25:64k/25:1m/25";
    // 320 requests each.
    let loops = std::env::var("KVMETER_LOOPS").unwrap_or_else(|_| "8".to_owned());
    let loops = format!("--loops={loops}");
    for way in &WAYS {
        for depth in ["--iodepth=1", "--iodepth=32"] {
            let (_dir, image) = image();
            let options = [sizes, depth, "--rw=randrw", "--size=16m", &loops];
            let fio = Fio::prepared(&image, way, &options);
            let Some(counted) = way.counts(&fio, &image) else { continue };
            let (told, seen) = (fio.run().numbers, numbers(counted.io(&image)));
            println!("{} {:?} {depth}: {seen:?}", way.engine, way.method);
            assert!(told[0] > 250 && told[1] > 250, "{told:?}");
            if way.engine == "libaio" && way.method == Method::Dio {
                // The end of one in an interrupt may not have been seen.
                let missed = told[0] + told[1] - seen[0] - seen[1];
                assert!(missed <= (told[0] + told[1]) / 50, "{told:?} {seen:?}");
            } else {
                assert_eq!(seen, told, "{} {depth}", way.engine);
            }
        }
    }
}

/// On a host with other work, fio's own clock has that in it, too: so often it is tried without.
const TRIES: usize = 20;

#[test]
fn latencies_are_within_5_percent_of_fios() {
    require!("ebpf", "fio");
    for way in &WAYS {
        let (_dir, image) = image();
        let mut tries = (0..TRIES).map_while(|_| shares_of_fios(way, &image));
        let is_near = |[read, written]: [f64; 2]| read.min(written) >= 0.95;
        // What the kernel does not have is not tried at all.
        assert!(tries.next().is_none_or(is_near) || tries.any(is_near), "{}", way.engine);
    }
}

/// The kernel's latencies of reads and of writes, as shares of those that fio has seen; nothing where the kernel does not
/// have this way.
fn shares_of_fios(way: &Way, image: &Path) -> Option<[f64; 2]> {
    let options = ["--bs=8m", "--rw=randrw", "--size=64m", "--loops=10"];
    let fio = Fio::prepared(image, way, &options);
    let counted = way.counts(&fio, image)?;
    let Told { numbers: told, latencies_ns } = fio.run();
    let seen = counted.io(image);
    let shares = [0, 1].map(|at| {
        // Of one whose end was not seen nothing is known yet.
        let counted = numbers(seen)[at] as f64 / told[at] as f64;
        let latency = [seen.read_ns, seen.write_ns][at] as f64 / counted / latencies_ns[at];
        assert!(counted > 0.98 && latency <= 1.01, "{}: {seen:?} {told:?}", way.engine);
        latency
    });
    println!("{} {:?}: {shares:?}", way.engine, way.method);
    Some(shares)
}

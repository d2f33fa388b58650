//! Compares fio's own counts and latencies with those counted for fio as a VM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::Read as _,
    path::Path,
    process::{Command, Stdio},
};

use crate::lab::{counted::Counted, rounds, sandbox::temporary};
use kvmeter::{counters::DiskIo, probe::Method};
use rustix::process::Signal;
use xtask::lab::{Child, PATIENCE, wait_until};

/// A way to make requests on a file.
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
    /// fio's options for how many requests are under way at a time. A synchronous engine has one.
    fn depths(&self) -> &'static [&'static str] {
        if self.engine.ends_with("sync") {
            &["--iodepth=1"]
        } else {
            &["--iodepth=1", "--iodepth=32"]
        }
    }

    fn methods(&self) -> Vec<Method> {
        // With io_uring, iomap's tracepoints count the requests that a worker thread makes.
        let beside = (self.method == Method::IoUring && self.direct).then_some(Method::Dio);
        [Some(self.method), beside].into_iter().flatten().collect()
    }
}

/// Counts one fio after the other as a VM. Its programs stay loaded while the methods are the same.
#[derive(Default)]
struct Counter(Option<(Vec<Method>, Counted)>);

impl Counter {
    /// Counts this fio on its image; `None` = the kernel does not support the method.
    fn follow(&mut self, fio: &Fio, way: &Way, image: &Path) -> Option<&Counted> {
        let (pid, methods) = (fio.0.pid(), way.methods());
        let counted = match self.0.take() {
            Some((loaded, mut counted)) if loaded == methods => {
                counted.follow(pid);
                counted
            }
            others => {
                drop(others);
                Counted::process(pid, &methods)
            }
        };
        let (_, counted) = self.0.insert((methods, counted));
        counted.probe.image_hooks.availability(way.method).ok()?;
        counted.records.claim_image(counted.key(image), way.method.layer()).unwrap();
        Some(counted)
    }
}

/// fio before its first request.
struct Fio(Child);

impl Fio {
    fn prepared(image: &Path, way: &Way, options: &[&str]) -> Self {
        // The shell becomes fio, with the same process id.
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

    /// Runs it to its end. Returns its own statistics.
    fn run(mut self) -> FioReport {
        self.0.signal(Signal::CONT).unwrap();
        let mut output = String::new();
        self.0.process().stdout.as_mut().unwrap().read_to_string(&mut output).unwrap();
        let report = output.find("{\n").map_or("", |begin| &output[begin..]);
        let report: serde_json::Value = serde_json::from_str(report).unwrap();
        let job = &report["jobs"][0];
        assert_eq!(job["error"], 0, "{job}");
        let number = |kind: &str, name: &str| job[kind][name].as_u64().unwrap();
        let kinds = ["read", "write"];
        let requests = kinds.map(|kind| number(kind, "total_ios"));
        let means = kinds.map(|kind| job[kind]["lat_ns"]["mean"].as_f64().unwrap());
        FioReport {
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

/// fio's statistics of its requests.
#[derive(Debug)]
struct FioReport {
    /// Reads, writes, bytes read, bytes written.
    numbers: [u64; 4],
    /// Sums over the reads and over the writes.
    latencies_ns: [f64; 2],
}

fn numbers(io: DiskIo) -> [u64; 4] {
    [io.reads, io.writes, io.read_octets, io.write_octets]
}

/// Makes an image of `size` MiB.
fn image(size: usize) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = temporary();
    let image = dir.path().join("image");
    std::fs::write(&image, vec![7; size << 20]).unwrap();
    (dir, image)
}

#[test]
fn mixed_requests_of_every_size_are_counted_to_the_byte() {
    require!("ebpf", "fio");
    let sizes = "--bssplit=512/25:4k/25:64k/25:1m/25";
    // 320 requests each.
    let loops = format!("--loops={}", rounds(8, 2));
    let mut counter = Counter::default();
    for way in &WAYS {
        for &depth in way.depths() {
            let (_dir, image) = image(16);
            let options = [sizes, depth, "--rw=randrw", "--size=16m", &loops];
            let fio = Fio::prepared(&image, way, &options);
            let Some(counted) = counter.follow(&fio, way, &image) else { continue };
            let (reported, seen) = (fio.run().numbers, numbers(counted.io(&image)));
            println!("{} {:?} {depth}: {seen:?}", way.engine, way.method);
            assert!(reported[0] > 250 && reported[1] > 250, "{reported:?}");
            if way.engine == "libaio" && way.method == Method::Dio {
                // A completion in an interrupt may be missed.
                let missed = reported[0] + reported[1] - seen[0] - seen[1];
                assert!(missed <= (reported[0] + reported[1]) / 50, "{reported:?} {seen:?}");
            } else {
                assert_eq!(seen, reported, "{} {depth}", way.engine);
            }
        }
    }
}

/// Attempts to measure latencies: on a host with other work, fio's own clock includes that work.
const TRIES: usize = 20;

#[test]
fn latencies_are_within_5_percent_of_fios() {
    require!("ebpf", "fio");
    let mut counter = Counter::default();
    for way in &WAYS {
        let (_dir, image) = image(64);
        let mut tries = (0..TRIES).map_while(|_| shares_of_fios(&mut counter, way, &image));
        let is_near = |[read, written]: [f64; 2]| read.min(written) >= 0.95;
        // Methods that the kernel does not support are skipped.
        assert!(tries.next().is_none_or(is_near) || tries.any(is_near), "{}", way.engine);
    }
}

/// The counted latencies of reads and of writes divided by fio's; `None` = the kernel does not support the method.
fn shares_of_fios(counter: &mut Counter, way: &Way, image: &Path) -> Option<[f64; 2]> {
    let options = ["--bs=8m", "--rw=randrw", "--size=64m", "--loops=10"];
    let fio = Fio::prepared(image, way, &options);
    let counted = counter.follow(&fio, way, image)?;
    let FioReport { numbers: reported, latencies_ns } = fio.run();
    let seen = counted.io(image);
    let shares = [0, 1].map(|at| {
        // The latency of a request whose completion was missed is not known yet.
        let counted = numbers(seen)[at] as f64 / reported[at] as f64;
        let latency = [seen.read_ns, seen.write_ns][at] as f64 / counted / latencies_ns[at];
        assert!(counted > 0.98 && latency <= 1.01, "{}: {seen:?} {reported:?}", way.engine);
        latency
    });
    println!("{} {:?}: {shares:?}", way.engine, way.method);
    Some(shares)
}

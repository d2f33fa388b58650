//! Compares the counted I/O of images with the requests made, with this process as the VM.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::IoSliceMut,
    os::{
        fd::AsFd as _,
        unix::fs::{FileExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::lab::{counted::Counted, io_limit::IoLimit, sandbox::temporary};
use aya::maps::{Array, Map, MapData};
use kvmeter::{
    counters::{DiskIo, ImageSlot},
    counting::{Registration, SelfTest, Tracker as _},
    probe::{ImageHooks, Method, TestError},
};
use kvmeter_common::{ImageKey, Layer, USER_IN_FLIGHT, USERS_IN_FLIGHT, VmRecord};
use rustix::fs::OFlags;
use xtask::lab::{LoopDevice, PATIENCE, wait_until};

/// Reads, bytes read, writes, bytes written.
fn numbers(io: DiskIo) -> [u64; 4] {
    [io.reads, io.read_octets, io.writes, io.write_octets]
}

/// Attempts to measure latencies: on a host with other work, the caller's own clock includes that work.
const TRIES: usize = 40;

/// Pages of a request that takes long compared with entering and leaving the kernel.
const PAGES: usize = 128;

/// A buffer that is aligned for `O_DIRECT`.
#[repr(align(4096))]
struct Page([u8; 65_536]);

fn image(dir: &Path, flags: OFlags) -> (PathBuf, File) {
    let path = dir.join("image");
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    (path.clone(), open(&path, flags))
}

fn open(path: &Path, flags: OFlags) -> File {
    let flags = i32::try_from(flags.bits()).unwrap();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap()
}

/// Three reads of 4, 8 and 64 KiB, two writes of 4 and 16 KiB.
fn exercise(file: &File, page: &mut Page) {
    for len in [4096, 8192, 65_536] {
        assert_eq!(file.read_at(&mut page.0[..len], 0).unwrap(), len);
    }
    for len in [4096, 16_384] {
        assert_eq!(file.write_at(&page.0[..len], 65_536).unwrap(), len);
    }
}

const EXERCISED: [u64; 4] = [3, 77_824, 2, 20_480];

/// Counts this process's I/O on the image by this method alone; `None` = the kernel does not support it.
fn counted_by(method: Method, path: &Path) -> Option<Counted> {
    let counted = Counted::by(&[method]);
    counted.probe.image_hooks.availability(method).ok()?;
    counted.records.claim_image(counted.key(path), method.layer()).unwrap();
    Some(counted)
}

#[test]
fn files_past_the_page_cache_are_counted_in_each_way() {
    require!("ebpf");
    for method in [Method::Dio, Method::Vfs, Method::Syscall] {
        let dir = temporary();
        let (path, file) = image(dir.path(), OFlags::DIRECT);
        let Some(counted) = counted_by(method, &path) else { continue };
        let mut page = Box::new(Page([7; 65_536]));
        exercise(&file, &mut page);
        assert_eq!(numbers(counted.io(&path)), EXERCISED, "{method:?}");
        // Reads beyond the end of the file return nothing.
        assert_eq!(file.read_at(&mut page.0[..4096], 1 << 20).unwrap(), 0);
        file.sync_all().unwrap();
        assert_eq!(numbers(counted.io(&path))[2..], EXERCISED[2..], "{method:?}");
    }
}

#[test]
fn requests_that_a_thread_makes_are_counted_beside_those_of_io_uring() {
    require!("ebpf");
    let counted = Counted::by(&[Method::IoUring, Method::Dio]);
    if counted.probe.image_hooks.availability(Method::Dio).is_err() {
        return;
    }
    let dir = temporary();
    let (path, file) = image(dir.path(), OFlags::DIRECT);
    counted.records.claim_image(counted.key(&path), Layer::Ring).unwrap();
    let mut page = Box::new(Page([7; 65_536]));
    exercise(&file, &mut page);
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
}

#[test]
fn files_in_the_page_cache_are_counted_at_the_functions_of_their_calls() {
    require!("ebpf");
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = image(dir.path(), OFlags::empty());
    let Some(counted) = counted_by(Method::Vfs, &path) else { return };
    let mut page = Box::new(Page([7; 65_536]));
    exercise(&file, &mut page);
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
    assert!(File::open(&path).unwrap().write_at(&[0], 0).is_err());
    let [_, writes] = counted.records.image_requests(&counted.slots(&path));
    assert_eq!((writes.errors, counted.io(&path).writes), (1, EXERCISED[2]));
    // The first request on another file is counted, too.
    let (other, file) = {
        let path = dir.path().join("other");
        (path.clone(), OpenOptions::new().create_new(true).write(true).open(&path).unwrap())
    };
    file.write_all_at(&[7], 0).unwrap();
    assert_eq!(numbers(counted.io(&other)), [0, 0, 1, 1]);
}

#[test]
fn files_in_the_page_cache_are_counted_by_their_calls() {
    require!("ebpf");
    let counted = Counted::by(&[Method::Syscall, Method::Vfs, Method::Dio]);
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = image(dir.path(), OFlags::empty());
    let mut page = Box::new(Page([7; 65_536]));
    exercise(&file, &mut page);
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
    // A file that is read without a position is not taken for an image.
    let other = dir.path().join("other");
    std::fs::write(&other, b"log").unwrap();
    assert_eq!(counted.slots(&other), []);
    std::fs::read(&path).unwrap();
    let now = counted.io(&path);
    assert!(now.reads > EXERCISED[0] && now.read_octets == EXERCISED[1] + (1 << 20));
    // A failed request counts as an error only.
    let read_only = File::open(&path).unwrap();
    assert!(read_only.write_at(&[0], 0).is_err());
    assert_eq!(counted.io(&path).writes, EXERCISED[2]);
    let [reads, writes] = counted.records.image_requests(&counted.slots(&path));
    assert_eq!((reads.errors, writes.errors), (0, 1));
    assert_eq!(reads.latencies.count(), now.reads);
    let mean = now.read_ns as f64 / now.reads as f64;
    assert!(
        reads.latencies.quantile(0) as f64 <= mean * 1.25
            && reads.latencies.quantile(1000) as f64 >= mean * 0.8
    );
}

#[test]
fn what_others_see_does_not_pass_the_test_of_programs_at_functions() {
    require!("ebpf");
    // Prints which methods pass.
    let counted = Counted::by(&[Method::Vfs, Method::Aio, Method::Syscall, Method::IoUring]);
    assert_eq!(counted.records.image_records(), []);
    drop(counted);
    let counted = Counted::by(&[Method::Syscall, Method::IoUring]);
    for method in [Method::Vfs, Method::Aio] {
        let tested = SelfTest::new(Arc::clone(&counted.records)).run(method);
        assert!(
            matches!(tested, Err(TestError::Missed(why)) if why.contains("it saw [0, 0, 0, 0]"))
        );
    }
}

#[test]
fn programs_at_functions_that_fall_silent_are_found_and_tried_again() {
    require!("ebpf");
    let mut counted = Counted::by(&[Method::Vfs, Method::Aio]);
    let hooks = &mut counted.probe.image_hooks;
    let records = &counted.records;
    let works = |method| [Method::Vfs, Method::Aio].contains(&method);
    if hooks.availability(Method::Vfs).is_err() {
        return;
    }
    let mut self_test = SelfTest::new(Arc::clone(records));
    let mut test = |method| self_test.run(method);
    let ftrace =
        |enabled: &str| std::fs::write("/proc/sys/kernel/ftrace_enabled", enabled).unwrap();
    let start = Instant::now();
    assert!(hooks.set_attached(works) && !hooks.prove(start, &mut test));
    ftrace("0");
    let is_found = hooks.prove(start, &mut test);
    let why = hooks.availability(Method::Vfs).err().map(str::to_owned);
    // It is tried again after pauses, in vain.
    let mut rounds = |hooks: &mut ImageHooks, from: u64| {
        (from..from + 64).any(|s| hooks.prove(start + Duration::from_secs(s), &mut test))
    };
    let is_in_vain = !rounds(hooks, 1);
    // Detached or attached meanwhile, they would break ftrace until the next boot.
    hooks.set_attached(|_| false);
    ftrace("1");
    assert!(is_found && is_in_vain);
    assert!(why.is_some_and(|why| why.contains("it saw [0, 0, 0, 0]; ftrace is switched off")));
    assert!(rounds(hooks, 100));
    assert_eq!([Method::Vfs, Method::Aio].map(|method| hooks.availability(method)), [Ok(()); 2]);
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = image(dir.path(), OFlags::empty());
    records.claim_image(counted.key(&path), Layer::Function).unwrap();
    exercise(&file, &mut Box::new(Page([7; 65_536])));
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
}

/// The limit of the contexts of io_submit(2) on this host.
struct AioLimit(String);

impl AioLimit {
    const FILE: &str = "/proc/sys/fs/aio-max-nr";

    /// No context can be had while this lives.
    fn reached() -> Self {
        let before = std::fs::read_to_string(Self::FILE).unwrap();
        std::fs::write(Self::FILE, "0").unwrap();
        Self(before)
    }
}

impl Drop for AioLimit {
    fn drop(&mut self) {
        std::fs::write(Self::FILE, &self.0).unwrap();
    }
}

#[test]
fn no_user_can_have_a_method_detached_by_taking_what_its_test_needs() {
    require!("ebpf");
    let mut counted = Counted::by(&[Method::Vfs, Method::Aio]);
    let hooks = &mut counted.probe.image_hooks;
    let works = hooks.availability(Method::Aio).is_ok();
    let passes = |result: Result<(), TestError>| match result {
        Ok(()) => works,
        Err(TestError::Missed(_)) => !works,
        Err(TestError::Untestable(why)) => panic!("{why}"),
    };
    // With the context that it has, and without one.
    let mut with = SelfTest::new(Arc::clone(&counted.records));
    let limit = AioLimit::reached();
    assert!(passes(with.run(Method::Aio)));
    drop(with);
    let mut without = SelfTest::new(Arc::clone(&counted.records));
    assert!(matches!(without.run(Method::Aio), Err(TestError::Untestable(_))));
    for s in 0..3 {
        hooks.prove(Instant::now() + Duration::from_secs(s), |way| without.run(way));
        assert_eq!(hooks.availability(Method::Aio).is_ok(), works);
    }
    drop(limit);
    assert!(passes(without.run(Method::Aio)));
}

#[test]
fn a_pin_that_was_removed_is_made_again() {
    require!("ebpf");
    let mut counted = Counted::by(&[Method::Syscall]);
    let pin = counted.pin("link_sys_exit");
    std::fs::remove_file(&pin).unwrap();
    let hooks = &mut counted.probe.image_hooks;
    assert!(hooks.prove(Instant::now(), |_| Ok(())));
    wait_until(PATIENCE, "it is attached", || {
        hooks.set_attached(|method| method == Method::Syscall).then_some(())
    })
    .unwrap();
    assert!(pin.exists());
}

#[test]
fn block_devices_are_counted_where_the_agent_says_so() {
    require!("ebpf", "loop");
    let mut counted = Counted::by(&[Method::Bdev]);
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = image(dir.path(), OFlags::empty());
    let device = LoopDevice::of(&path).unwrap();
    let file = open(device.path(), OFlags::DIRECT);
    let mut page = Box::new(Page([7; 65_536]));
    exercise(&file, &mut page);
    assert_eq!(counted.slots(device.path()), []);
    counted.records.claim_image(counted.key(device.path()), Layer::Block).unwrap();
    // A missed completion is noticed when the next request begins.
    let counts = |times: u64| {
        exercise(&file, &mut page);
        file.sync_all().unwrap();
        let now = numbers(counted.io(device.path()));
        (now == EXERCISED.map(|number| number * times)).then_some(now)
    };
    (1..100).find_map(counts).unwrap();
    // Nothing is counted once the kernel has detached the hooks, and a new record starts at 0.
    counted.probe.image_hooks.set_attached(|_| false);
    wait_until(PATIENCE, "the hooks are gone", || {
        let before = numbers(counted.io(device.path()));
        exercise(&file, &mut page);
        (numbers(counted.io(device.path())) == before).then_some(())
    })
    .unwrap();
    counted.registration.untrack_vm(counted.vm);
    assert_eq!(counted.records.image_records(), []);
}

#[test]
fn requests_that_a_limit_of_a_cgroup_delays_are_counted() {
    require!("ebpf", "loop");
    let counted = Counted::by(&[Method::Bdev]);
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = image(dir.path(), OFlags::empty());
    let device = LoopDevice::of(&path).unwrap();
    let file = open(device.path(), OFlags::DIRECT);
    counted.records.claim_image(counted.key(device.path()), Layer::Block).unwrap();
    let limit = IoLimit::on(device.path());
    limit.reads_per_s(50);
    limit.enter();
    let mut page = Box::new(Page([7; 65_536]));
    let start = Instant::now();
    for _ in 0..25 {
        file.read_exact_at(&mut page.0[..4096], 0).unwrap();
    }
    assert!(start.elapsed() > Duration::from_millis(200), "nothing was delayed");
    // Another process with the same cgroup, whose requests are not delayed, is not counted.
    limit.reads_per_s(1_000_000);
    let from = format!("if={}", device.path().display());
    let mut dd = Command::new("dd");
    dd.args([&from, "of=/dev/null", "bs=4k", "iflag=direct"]).stderr(Stdio::null());
    assert!(dd.status().unwrap().success());
    // A missed completion is noticed when the next request begins.
    let counts = |more: u64| {
        file.read_exact_at(&mut page.0[..4096], 0).unwrap();
        let now = numbers(counted.io(device.path()));
        (now == [25 + more, 4096 * (25 + more), 0, 0]).then_some(())
    };
    (1..100).find_map(counts).unwrap_or_else(|| panic!("{:?}", counted.io(device.path())));
}

#[test]
fn hooks_that_were_given_up_can_be_had_again_soon() {
    require!("ebpf");
    let mut counted = Counted::by(&Method::ALL);
    let hooks = &mut counted.probe.image_hooks;
    let works: Vec<_> =
        Method::ALL.into_iter().filter(|method| hooks.availability(*method).is_ok()).collect();
    for _ in 0..3 {
        hooks.set_attached(|_| false);
        // The kernel detaches them asynchronously, and refuses to attach them again before.
        wait_until(PATIENCE, "they are attached", || {
            hooks.set_attached(|method| works.contains(&method)).then_some(())
        })
        .unwrap();
        assert!(works.iter().all(|method| hooks.availability(*method).is_ok()));
    }
}

#[test]
fn what_closed_images_had_is_kept_in_one_of_them() {
    require!("ebpf");
    let counted = Counted::by(&[Method::Syscall]);
    let dir = tempfile::tempdir().unwrap();
    let (path, file) = image(dir.path(), OFlags::empty());
    let mut page = Box::new(Page([7; 65_536]));
    let mut closed = Vec::new();
    for _ in 0..3 {
        exercise(&file, &mut page);
        let slots = counted.slots(&path);
        assert_eq!(slots.len(), 1);
        counted.records.close_image(slots[0]);
        closed.extend(slots);
    }
    let before = counted.records.image_io(&closed);
    assert_eq!(numbers(before), EXERCISED.map(|number| number * 3));
    let [reads, _] = counted.records.image_requests(&closed);
    counted.records.merge_images(closed[0], &closed[1..]);
    // A reader that still has all three gets the same sum.
    for slots in [&closed[..], &closed[..1]] {
        assert_eq!(counted.records.image_io(slots), before);
        let [now, _] = counted.records.image_requests(slots);
        assert_eq!(now.latencies.count(), reads.latencies.count());
    }
    // The others stay, empty.
    let taken =
        || -> Vec<_> { counted.records.image_records().iter().map(|image| image.slot).collect() };
    assert_eq!(BTreeSet::from_iter(taken()), BTreeSet::from_iter(closed.iter().copied()));
    // An agent ended before that: the next one frees them.
    drop(Registration::adopt(Arc::clone(&counted.records)));
    assert_eq!(counted.records.image_io(&closed[..1]), before);
    assert_eq!(taken(), closed[..1], "the one that has the counts is not freed");
    exercise(&file, &mut page);
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
}

#[test]
fn the_records_that_an_image_can_have_are_told_by_no_key_and_stay_over_a_restart() {
    require!("ebpf");
    let dir = temporary();
    let (path, file) = image(dir.path(), OFlags::empty());
    let claim = |counted: &Counted| -> Vec<ImageSlot> {
        let key = |file| ImageKey { file, ..counted.key(&path) };
        let files = std::iter::once(counted.key(&path)).chain((1..8).map(|n| key(1 << 40 | n)));
        files.map(|key| counted.records.claim_image(key, Layer::Call).unwrap()).collect()
    };
    let mut page = Box::new(Page([7; 65_536]));
    let counted = Counted::by(&[Method::Syscall]);
    let first = claim(&counted);
    exercise(&file, &mut page);
    let counted = counted.restart(&[Method::Syscall]);
    assert!(counted.probe.adopted && claim(&counted) == first);
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
    exercise(&file, &mut page);
    assert_eq!(numbers(counted.io(&path)), EXERCISED.map(|number| 2 * number));
    drop(counted);
    // As after a reboot of the host.
    assert_ne!(claim(&Counted::by(&[Method::Syscall])), first);
}

/// Makes large requests on an image, one after the other. Returns the number counted, and the sums of their latencies in the
/// kernel and in this process.
fn latencies(method: Method, path: &Path, flags: OFlags, pages: usize) -> (u64, [Duration; 2]) {
    let counted = counted_by(method, path).unwrap();
    let file = open(path, flags);
    let mut pages: Vec<Page> = (0..pages).map(|_| Page([0; 65_536])).collect();
    let large = pages.len() as u64 * 65_536;
    let mut seen = Duration::ZERO;
    for round in 0..64 {
        let start = Instant::now();
        let parts = pages.iter_mut().map(|page| IoSliceMut::new(&mut page.0));
        let mut parts: Vec<_> = parts.collect();
        let read = rustix::io::preadv(&file, &mut parts, (round % 2) * large).unwrap();
        assert_eq!(read as u64, large);
        seen += start.elapsed();
    }
    let io = counted.io(path);
    let told = Duration::from_nanos(io.read_ns);
    assert!(io.reads <= 64 && io.read_octets == io.reads * large, "{io:?}");
    let seen = seen.mul_f64(io.reads as f64 / 64.0);
    let [reads, _] = counted.records.image_requests(&counted.slots(path));
    let [p50, p999] = [500, 999].map(|per_mille| reads.latencies.quantile(per_mille));
    assert!(p50 <= p999 && Duration::from_nanos(p50) * 64 < seen * 3, "{p50} {p999} {seen:?}");
    println!("{told:?} of {seen:?}");
    (io.reads, [told, seen])
}

#[test]
fn latencies_are_those_that_the_caller_sees() {
    require!("ebpf");
    let mut tested = 0;
    for method in [Method::Dio, Method::Vfs, Method::Syscall] {
        if Counted::by(&[method]).probe.image_hooks.availability(method).is_err() {
            continue;
        }
        tested += 1;
        let dir = temporary();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![7; 16 << 20]).unwrap();
        let flags = if method == Method::Dio { OFlags::DIRECT } else { OFlags::empty() };
        let is_near = |(reads, [told, seen]): (u64, [Duration; 2])| {
            assert!(reads == 64 && told <= seen, "{method:?}: {reads}, {told:?} of {seen:?}");
            told >= seen.mul_f64(0.95)
        };
        let mut tries = (0..TRIES).map(|_| latencies(method, &path, flags, PAGES));
        assert!(tries.any(is_near), "{method:?}");
    }
    assert!(tested >= 2);
}

#[test]
fn latencies_of_block_devices_are_a_little_less() {
    require!("ebpf", "loop");
    let dir = temporary();
    let path = dir.path().join("image");
    std::fs::write(&path, vec![7; 16 << 20]).unwrap();
    let device = LoopDevice::direct(&path).unwrap();
    // A completion in an interrupt may be missed. The block layer sees a request some microseconds after the system call,
    // and its completion before the caller does.
    let is_near = |(reads, [told, seen]): (u64, [Duration; 2])| {
        assert!(reads >= 60 && told <= seen.mul_f64(1.01), "{reads}, {told:?} of {seen:?}");
        told >= seen.mul_f64(0.85)
    };
    let mut tries = (0..TRIES).map(|_| latencies(Method::Bdev, device.path(), OFlags::DIRECT, 1));
    assert!(tries.any(is_near));
}

#[test]
fn others_that_use_an_image_are_not_counted() {
    require!("ebpf");
    let counted = Counted::by(&[Method::Syscall, Method::Vfs, Method::Dio]);
    let dir = temporary();
    let (path, file) = image(dir.path(), OFlags::DIRECT);
    let mut page = Box::new(Page([7; 65_536]));
    exercise(&file, &mut page);
    for flags in ["iflag=direct", "iflag=fullblock"] {
        let from = format!("if={}", path.display());
        let mut dd = Command::new("dd");
        dd.args([&from, "of=/dev/null", "bs=4k", flags]).stderr(Stdio::null());
        assert!(dd.status().unwrap().success());
    }
    assert_eq!(numbers(counted.io(&path)), EXERCISED);
}

#[test]
fn a_user_with_a_share_of_requests_in_flight_takes_none_of_those_of_others() {
    require!("ebpf");
    const WORDS: usize = size_of::<VmRecord>() / 8;
    const ACCOUNT: usize = std::mem::offset_of!(VmRecord, account) / 8;
    const COUNT: usize = std::mem::offset_of!(VmRecord, in_flight_of_account) / 8;
    let dir = temporary();
    let (path, file) = image(dir.path(), OFlags::empty());
    let counted = Counted::by(&[Method::Syscall]);
    counted.records.claim_image(counted.key(&path), Method::Syscall.layer()).unwrap();
    let Counted { records, probe, vm, .. } = &counted;
    let vms = probe.vms.fd().as_fd().try_clone_to_owned().unwrap();
    let vms = MapData::from_fd(vms).unwrap();
    let mut vms: Array<_, [u64; WORDS]> = Array::try_from(Map::Array(vms)).unwrap();
    let mut set = |slot: u16, word: usize, value: u64| {
        let mut record = vms.get(&u32::from(slot), 0).unwrap();
        let before = std::mem::replace(&mut record[word], value);
        vms.set(u32::from(slot), record, 0).unwrap();
        before
    };
    let reads = || {
        let before = counted.io(&path).reads;
        file.read_at(&mut [0; 512], 0).unwrap();
        counted.io(&path).reads - before
    };
    let account = vm.0 + 1;
    let [user, users] = [USER_IN_FLIGHT, USERS_IN_FLIGHT].map(u64::from);
    for (of_vm, of_user, of_all, is_counted) in [
        (account, user - 1, users - 1, 1),
        (account, user, users - 1, 0),
        (account, user - 1, users, 0),
        // Root's, and another user's.
        (0, user, users, 1),
        (account + 1, user, users - 1, 1),
    ] {
        set(vm.0, ACCOUNT, u64::from(of_vm));
        set(account, COUNT, of_user);
        set(0, COUNT, of_all);
        assert_eq!(reads(), is_counted, "account {of_vm}: {of_user} of {of_all}");
        // The request has ended.
        assert_eq!((set(account, COUNT, 0), set(0, COUNT, 0)), (of_user, of_all));
        assert_eq!(set(account + 1, COUNT, 0), 0);
    }
    assert_eq!(records.uncounted_requests(), 2);
}

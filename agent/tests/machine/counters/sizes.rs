//! Sizes of the tables that cannot be had.

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use super::*;

const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";

/// What `look` returns in a thread that finds ftrace switched off. Not every kernel lets a test switch it off.
fn without_ftrace<T: Send>(look: impl FnOnce() -> T + Send) -> T {
    let off = tempfile::NamedTempFile::new().unwrap();
    fs::write(off.path(), "0\n").unwrap();
    let of_thread = || {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        mount(Some(off.path()), FTRACE, none, MsFlags::MS_BIND, none).unwrap();
        look()
    };
    thread::scope(|scope| scope.spawn(of_thread).join().unwrap())
}

#[test]
fn without_ftrace_tables_keep_their_sizes_while_programs_at_functions_are_attached() {
    require!("ebpf");
    if !Path::new(FTRACE).exists() {
        xtask::harness::ignore("this kernel has no ftrace");
    }
    let pins = PinDir::new();
    let start_with = |sizes| Probe::start(pins.path(), Path::new(KERNEL_BTF), sizes);
    let small = Sizes::of(16, 128, 256);
    drop(start_with(Sizes::default()).unwrap());
    // Stands for one that is attached: not every kernel lets a test attach one.
    let link = |name| pins.path().join(format!("v{LAYOUT}/link_{name}"));
    fs::rename(link("sched_wakeup"), link("pread64_entry")).unwrap();
    without_ftrace(|| {
        let probe = start_with(small).unwrap();
        assert!(probe.adopted && probe.hooks.iter().all(|state| state.failure.is_none()));
        assert_eq!(probe.sizes, Sizes::default());
    });
    assert!(link("pread64_entry").exists());
    let probe = start_with(small).unwrap();
    assert!(!probe.adopted && probe.sizes == small);
}

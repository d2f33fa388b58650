//! Files that are slow to open or many, and a command line that changes.
#![expect(unsafe_code, reason = "no library wraps F_SETLEASE")]

use std::{
    env,
    fs::{self, File},
    os::{
        fd::AsRawFd as _,
        unix::{
            fs::{FileExt as _, PermissionsExt as _, symlink},
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    fs::{CWD, FileType, Mode, mknodat},
    process::{Resource, Rlimit, setrlimit},
};

use super::wait;

/// `F_SETLEASE` of `linux/fcntl.h`.
const F_SETLEASE: i32 = 1024;

/// Age at which the command line changes.
const DELAY: Duration = Duration::from_millis(300);

/// Pause between two attempts to change directories.
const MEDDLE_PAUSE: Duration = Duration::from_millis(20);

/// Path of the file that the disguise names.
fn named() -> anyhow::Result<PathBuf> {
    Ok(env::var_os("ATTACK_FILE").context("ATTACK_FILE is not set")?.into())
}

/// Writes the text of `ATTACK_TEXT` over its own command line, without an exec.
pub(crate) fn rewritten() -> anyhow::Result<()> {
    let text = env::var("ATTACK_TEXT")?.replace(' ', "\0");
    thread::sleep(DELAY);
    let stat = fs::read_to_string("/proc/self/stat")?;
    // arg_start and arg_end are the fields 48 and 49 (proc_pid_stat(5)); the second is the name in parentheses.
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let [start, end] = [45, 46].map(|at| fields.get(at).and_then(|field| field.parse().ok()));
    let (start, end): (u64, u64) = start.zip(end).context("stat has no arguments")?;
    let mut bytes = text.into_bytes();
    bytes.resize(usize::try_from(end - start)?, 0);
    File::options().write(true).open("/proc/self/mem")?.write_all_at(&bytes, start)?;
    wait()
}

/// Holds a write lease on the file that it names: open(2) waits for `lease-break-time`.
pub(crate) fn leased() -> anyhow::Result<()> {
    let file = File::create(named()?)?;
    // SAFETY: the descriptor is open, and this command takes an integer.
    let done = unsafe { libc::fcntl(file.as_raw_fd(), F_SETLEASE, libc::F_WRLCK) };
    if done < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    // SIGIO is sent when the lease is to be given up, and would end the process.
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    wait()
}

/// Makes the file that it names a FIFO that has no writer.
pub(crate) fn make_fifo() -> anyhow::Result<()> {
    Ok(mknodat(CWD, named()?, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?)
}

/// Executes itself while it has a file open that takes for ever to close: no one can read `/proc/PID/fd` meanwhile.
pub(crate) fn hang() -> anyhow::Result<()> {
    let _closed_in_exec = File::open(named()?)?;
    Err(Command::new(env::current_exe()?).env("ATTACK", "sleep").exec().into())
}

/// Tries to make, replace and remove what is in the directories of `ATTACK_DIRS`, with colons between them, and those
/// directories themselves.
pub(crate) fn meddle() -> anyhow::Result<()> {
    let dirs = env::var("ATTACK_DIRS")?;
    loop {
        for dir in dirs.split(':').map(Path::new) {
            let entries =
                fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
            for path in entries.chain([dir.to_owned(), dir.join("new")]) {
                let attempts = [
                    fs::remove_file(&path),
                    fs::remove_dir(&path),
                    fs::rename(&path, path.with_extension("old")),
                    fs::create_dir(&path),
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)),
                    symlink("/dev/null", &path),
                ];
                // A sticky directory lets every user make something.
                let [.., made, _, linked] = attempts;
                drop(made.and_then(|()| fs::remove_dir(&path)));
                drop(linked.and_then(|()| fs::remove_file(&path)));
            }
        }
        thread::sleep(MEDDLE_PAUSE);
    }
}

/// Opens many files of the directory that it names.
pub(crate) fn many_open() -> anyhow::Result<()> {
    let count: u64 = env::var("ATTACK_COUNT")?.parse()?;
    raise_descriptors(count + 64)?;
    let dir = named()?;
    fs::create_dir_all(&dir)?;
    let open = |number| {
        let path = dir.join(format!("d{number}"));
        let file =
            File::options().create(true).truncate(false).read(true).write(true).open(path)?;
        // A request on each: the kernel takes a record for it.
        file.write_all_at(&[0; 512], 0)?;
        Ok(file)
    };
    let files: std::io::Result<Vec<File>> = (0..count).map(open).collect();
    let _files = files?;
    wait()
}

/// Raises the limit of open files.
pub(crate) fn raise_descriptors(count: u64) -> anyhow::Result<()> {
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum: None }).or_else(
        |_| setrlimit(Resource::Nofile, Rlimit { current: Some(count), maximum: Some(count) }),
    )?)
}

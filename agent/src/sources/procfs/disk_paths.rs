//! Answers which open file of a process a path of a disk means. This is the only place that does so.
//!
//! A path means what it means to the process: in its root, mounts and working directory, through its links. What is there is
//! compared with the open files by identity. Where a file was renamed, deleted or replaced since the process opened it, or
//! where a lookup might wait for a server, the path without links is compared with the paths that the kernel has for the
//! open files of the same mount.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
};

use super::{
    files::OpenFiles,
    image_headers::file_of,
    path_walk::{End, Place, Walker},
    process::Process,
    shortage::if_there,
};
use crate::inventory::{FileIdentity, OpenFile, PathAnswer};

/// Most paths of a process that are answered.
const MAX_PATHS: usize = 2048;

/// What was answered in the previous scan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Before<'a> {
    pub(super) paths: &'a BTreeMap<String, PathAnswer>,
    pub(super) files: &'a [OpenFile],
}

/// Answers paths of one process.
pub(super) struct DiskPaths<'a> {
    process: &'a Process,
    open: &'a OpenFiles,
    walker: Option<Walker<'a>>,
    /// The working directory that the process was started in, by its environment; `Some(None)` = not known.
    started_in: Option<Option<String>>,
}

/// What the place of a path says.
enum Exact {
    Answer(PathAnswer),
    /// Nothing is there, or it cannot be looked up: the reason, and the mount if only its files come into question.
    Doubt(String, Option<u64>),
}

impl<'a> DiskPaths<'a> {
    pub(super) const fn new(process: &'a Process, open: &'a OpenFiles) -> Self {
        Self { process, open, walker: None, started_in: None }
    }

    /// Answers each of the paths.
    ///
    /// # Errors
    ///
    /// When the agent lacks memory or descriptors, or the process is gone.
    pub(super) fn answer_all<'p>(
        &mut self,
        paths: impl Iterator<Item = &'p str>,
        before: Option<Before<'_>>,
    ) -> io::Result<BTreeMap<String, PathAnswer>> {
        let before = before.map(|before| Known::new(before, self.open));
        let mut answers = BTreeMap::new();
        let mut doubts = Vec::new();
        let mut seen = HashSet::new();
        for path in paths {
            if answers.len() + doubts.len() >= MAX_PATHS {
                break;
            }
            if path.is_empty() || !seen.insert(path) {
                continue;
            }
            let known = before.as_ref().and_then(|before| before.of(path));
            if let Some((identity, true)) = known {
                answers.insert(path.to_owned(), PathAnswer::Open(identity));
                continue;
            }
            match (self.exact(path)?, known) {
                (Exact::Answer(open @ PathAnswer::Open(_)), _) => {
                    answers.insert(path.to_owned(), open);
                }
                // The process still has the file open that was there before.
                (_, Some((identity, _))) => {
                    answers.insert(path.to_owned(), PathAnswer::Open(identity));
                }
                (Exact::Answer(answer), None) => {
                    answers.insert(path.to_owned(), answer);
                }
                (Exact::Doubt(why, mount), None) => doubts.push((path, why, mount)),
            }
        }
        let named: HashSet<_> = answers
            .values()
            .filter_map(|answer| match answer {
                PathAnswer::Open(identity) => Some(*identity),
                PathAnswer::Closed(_) | PathAnswer::Unknown(_) => None,
            })
            .collect();
        let mut free: HashMap<&str, Vec<&OpenFile>> = HashMap::new();
        for file in self.open.files.iter().filter(|file| !named.contains(&file.identity)) {
            free.entry(last_of(&file.path)).or_default().push(file);
        }
        for (path, why, mount) in doubts {
            let answer = match only_of_name(&free, &path_of(path), mount) {
                Some(identity) => PathAnswer::Open(identity),
                None => PathAnswer::Unknown(why),
            };
            answers.insert(path.to_owned(), answer);
        }
        Ok(answers)
    }

    /// The open file at a path; `None` = there is none, or it is in doubt.
    ///
    /// # Errors
    ///
    /// When the agent lacks memory or descriptors, or the process is gone.
    pub(super) fn find(&mut self, path: &str) -> io::Result<Option<FileIdentity>> {
        Ok(match self.exact(path)? {
            Exact::Answer(PathAnswer::Open(identity)) => Some(identity),
            Exact::Answer(_) | Exact::Doubt(..) => None,
        })
    }

    fn exact(&mut self, path: &str) -> io::Result<Exact> {
        let Some(path) = file_of(path) else {
            return Ok(doubt("it is no path of a file"));
        };
        if path.starts_with("/dev/fdset/") {
            return Ok(unknown("its path names descriptors that the VM's process was given"));
        }
        if let Some(descriptor) = descriptor_of(&path) {
            let identity = descriptor.parse().ok().and_then(|fd| self.open.by_descriptor.get(&fd));
            return Ok(match identity {
                Some(identity) => Exact::Answer(PathAnswer::Open(*identity)),
                None => unknown("its path names a descriptor that is not open any more"),
            });
        }
        let at_present = self.walked(&path)?;
        if path.starts_with('/') || matches!(at_present, Exact::Answer(PathAnswer::Open(_))) {
            return Ok(at_present);
        }
        // The process may have changed its directory since.
        let from_start = match self.started_in()? {
            Some(dir) => {
                let path = format!("{dir}/{path}");
                self.walked(&path)?
            }
            None => return Ok(at_present),
        };
        Ok(match from_start {
            Exact::Answer(PathAnswer::Open(_)) => from_start,
            _ => at_present,
        })
    }

    fn walked(&mut self, path: &str) -> io::Result<Exact> {
        let walker = match &mut self.walker {
            Some(walker) => walker,
            none => none.insert(Walker::new(self.process)?),
        };
        Ok(match walker.walk(path)? {
            End::Found(found) => match found.identity {
                Some(identity) if self.open.descriptors.contains_key(&identity) => {
                    Exact::Answer(PathAnswer::Open(identity))
                }
                // The process has another file open that was at this place once.
                Some(identity) => self
                    .named(&found.place)
                    .unwrap_or(Exact::Answer(PathAnswer::Closed(identity))),
                None => unknown("there is neither a file nor a block device at its path"),
            },
            End::Missing(place) => self.named(&place).unwrap_or_else(|| {
                doubt("nothing is at its path any more, and no open file of the VM's process has this name")
            }),
            End::MayBlock(place, kind) => self.named(&place).unwrap_or_else(|| {
                let kind = if kind.is_empty() { "a filesystem that is not known" } else { &kind };
                let why = format!(
                    "its path leads to {kind}, where a lookup may block, and no open file of the VM's process has this path"
                );
                Exact::Doubt(why, Some(place.mount))
            }),
            End::Failed(error) => {
                let error = io::Error::from(error);
                Exact::Doubt(format!("its path cannot be followed: {error}"), None)
            }
        })
    }

    /// The open file that is, or was, at this place.
    fn named(&self, place: &Place) -> Option<Exact> {
        let files = &self.open.files;
        // They are sorted by path.
        let from = files.partition_point(|file| file.path < place.path);
        let of_path = files[from..].iter().take_while(|file| file.path == place.path);
        let file = of_path.into_iter().find(|file| file.mount == place.mount)?;
        Some(Exact::Answer(PathAnswer::Open(file.identity)))
    }

    /// The working directory in the process's first environment.
    fn started_in(&mut self) -> io::Result<Option<&str>> {
        let known = match &mut self.started_in {
            Some(known) => known,
            none => {
                let environment = if_there(self.process.read("environ"))?;
                none.insert(environment.and_then(|environment| start_dir(&environment)))
            }
        };
        Ok(known.as_deref())
    }
}

/// The working directory that an environment names.
fn start_dir(environment: &[u8]) -> Option<String> {
    let mut variables = environment.split(|&byte| byte == 0);
    let dir = variables.find_map(|variable| variable.strip_prefix(b"PWD="))?;
    let dir = std::str::from_utf8(dir).ok()?;
    dir.starts_with('/').then(|| dir.to_owned())
}

/// The answers of the previous scan whose files are still open.
struct Known<'a> {
    before: Before<'a>,
    open: &'a OpenFiles,
    /// Path of each file that was open in the previous scan.
    then: HashMap<FileIdentity, &'a str>,
}

impl<'a> Known<'a> {
    fn new(before: Before<'a>, open: &'a OpenFiles) -> Self {
        let then = before.files.iter().map(|file| (file.identity, &*file.path)).collect();
        Self { before, open, then }
    }

    /// The file, and whether the answer still holds without another look: a renamed file may be one that got a freed inode
    /// number.
    fn of(&self, path: &str) -> Option<(FileIdentity, bool)> {
        let PathAnswer::Open(identity) = self.before.paths.get(path)? else { return None };
        let now = self.open.file(*identity)?;
        Some((*identity, self.then.get(identity) == Some(&&*now.path)))
    }
}

fn unknown(why: &str) -> Exact {
    Exact::Answer(PathAnswer::Unknown(why.to_owned()))
}

fn doubt(why: &str) -> Exact {
    Exact::Doubt(why.to_owned(), None)
}

fn path_of(path: &str) -> String {
    file_of(path).unwrap_or_else(|| path.to_owned())
}

/// The number in a path such as `/dev/fd/9`, which names a descriptor of the process that uses it.
fn descriptor_of(path: &str) -> Option<&str> {
    ["/dev/fd/", "/proc/self/fd/", "/proc/thread-self/fd/"]
        .iter()
        .find_map(|dir| path.strip_prefix(dir))
        .filter(|rest| !rest.contains('/'))
}

/// The only file whose path ends as this one, or else with the same last component. `mount`: only files of this mount.
fn only_of_name(
    free: &HashMap<&str, Vec<&OpenFile>>,
    path: &str,
    mount: Option<u64>,
) -> Option<FileIdentity> {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    let last = names.last()?;
    let of_name = free.get(last)?;
    let is_in_mount = |file: &&OpenFile| mount.is_none_or(|mount| file.mount == mount);
    let only = |end: &str| {
        let files = of_name.iter().copied().filter(is_in_mount);
        let mut found = files.filter(|file| file.path.ends_with(end)).map(|file| file.identity);
        let first = found.next()?;
        found.all(|other| other == first).then_some(first)
    };
    only(&format!("/{}", names.join("/"))).or_else(|| only(""))
}

/// The last component of a path without links.
pub(super) fn last_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::{MetadataExt as _, symlink},
        path::Path,
        process::{Command, Stdio},
    };

    use super::{
        super::{descriptors::Descriptors, test_child::TestChild},
        *,
    };

    /// A process that has two files open, in a directory of its own.
    struct Sleeper {
        child: TestChild,
        dir: tempfile::TempDir,
    }

    impl Sleeper {
        /// `a/disk.img` and `b/disk.img` are open. `cwd` is below the directory, or absolute.
        fn new(cwd: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["a", "b"] {
                fs::create_dir(dir.path().join(name)).unwrap();
                fs::write(dir.path().join(name).join("disk.img"), name).unwrap();
            }
            let open =
                |name: &str| File::options().read(true).write(true).open(dir.path().join(name));
            let child = Command::new("sleep")
                .arg("600")
                .current_dir(dir.path().join(cwd))
                .env("PWD", dir.path())
                .stdin(open("a/disk.img").unwrap())
                .stdout(open("b/disk.img").unwrap())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            Self { child: TestChild(child), dir }
        }

        fn path(&self, name: &str) -> String {
            format!("{}/{name}", self.dir.path().display())
        }

        fn link(&self, to: impl AsRef<Path>, name: &str) {
            symlink(to, self.dir.path().join(name)).unwrap();
        }

        fn answers(
            &self,
            paths: &[&str],
            before: Option<Before<'_>>,
        ) -> (BTreeMap<String, PathAnswer>, OpenFiles) {
            let process = Process::hold(Path::new("/proc"), self.child.id()).unwrap();
            let list = || Descriptors::of(&process, false);
            let (_, open) =
                super::super::files::open(&process, list().unwrap(), list, &[]).unwrap();
            let answers =
                DiskPaths::new(&process, &open).answer_all(paths.iter().copied(), before).unwrap();
            (answers, open)
        }

        fn answer(&self, path: &str) -> PathAnswer {
            self.answers(&[path], None).0.remove(path).unwrap()
        }
    }

    fn identity(path: &str) -> FileIdentity {
        let found = fs::metadata(path).unwrap();
        let [major, minor] = [rustix::fs::major(found.dev()), rustix::fs::minor(found.dev())];
        FileIdentity { device: FileIdentity::kernel_device(major, minor), file: found.ino() }
    }

    #[test]
    fn a_path_means_the_same_file_in_every_spelling() {
        let sleeper = Sleeper::new("a");
        sleeper.link("b", "to-b");
        sleeper.link(sleeper.path("to-b"), "to-link");
        sleeper.link("to-link/../a/./disk.img", "to-a");
        let [a, b] = ["a/disk.img", "b/disk.img"].map(|name| identity(&sleeper.path(name)));
        for (path, expected) in [
            ("disk.img", a),
            ("./disk.img", a),
            ("../b/disk.img", b),
            ("..//a/.././b//disk.img", b),
            (&*sleeper.path("a//disk.img"), a),
            (&*sleeper.path("a/../b/disk.img"), b),
            (&*sleeper.path("to-link/disk.img"), b),
            (&*sleeper.path("to-a"), a),
            ("../to-a", a),
            (&*format!("/../..{}", sleeper.path("to-a")), a),
            (&*format!("file:{}", sleeper.path("to-b/disk.img")), b),
            ("/proc/self/fd/0", a),
            ("/dev/fd/1", b),
        ] {
            assert_eq!(sleeper.answer(path), PathAnswer::Open(expected), "{path}");
        }
    }

    #[test]
    fn a_file_that_is_not_open_is_not_taken_for_one_of_the_same_name() {
        let sleeper = Sleeper::new("a");
        fs::create_dir(sleeper.path("c")).unwrap();
        fs::write(sleeper.path("c/disk.img"), "c").unwrap();
        let closed = PathAnswer::Closed(identity(&sleeper.path("c/disk.img")));
        assert_eq!(sleeper.answer(&sleeper.path("c/disk.img")), closed);
        assert_eq!(sleeper.answer("../c/disk.img"), closed);
        // Two of this name come into question.
        assert!(matches!(sleeper.answer("/none/disk.img"), PathAnswer::Unknown(_)));
    }

    #[test]
    fn a_process_that_has_changed_its_directory_is_known_by_the_one_it_was_started_in() {
        let sleeper = Sleeper::new("/");
        let b = identity(&sleeper.path("b/disk.img"));
        assert_eq!(sleeper.answer("b/disk.img"), PathAnswer::Open(b));
    }

    #[test]
    fn a_file_that_was_deleted_or_replaced_is_the_one_that_is_open() {
        let sleeper = Sleeper::new("a");
        let a = identity(&sleeper.path("a/disk.img"));
        fs::remove_file(sleeper.path("a/disk.img")).unwrap();
        assert_eq!(sleeper.answer("disk.img"), PathAnswer::Open(a));
        fs::write(sleeper.path("a/disk.img"), "another").unwrap();
        assert_eq!(sleeper.answer("disk.img"), PathAnswer::Open(a));
    }

    #[test]
    fn a_file_that_was_renamed_stays_what_it_was() {
        let sleeper = Sleeper::new("a");
        sleeper.link("a/disk.img", "link");
        let paths = [&*sleeper.path("link"), "../b/disk.img"];
        let [a, b] = ["a/disk.img", "b/disk.img"].map(|name| identity(&sleeper.path(name)));
        let (first, open) = sleeper.answers(&paths, None);
        fs::rename(sleeper.path("a/disk.img"), sleeper.path("a/old.img")).unwrap();
        // The link leads to the other disk now.
        fs::remove_file(sleeper.path("link")).unwrap();
        sleeper.link("b/disk.img", "link");
        fs::write(sleeper.path("a/disk.img"), "another").unwrap();
        let before = Before { paths: &first, files: &open.files };
        let (second, _) = sleeper.answers(&["disk.img", "../b/disk.img"], Some(before));
        assert_eq!(second["../b/disk.img"], PathAnswer::Open(b));
        assert!(matches!(second["disk.img"], PathAnswer::Closed(_)));
        let renamed = BTreeMap::from([("disk.img".to_owned(), PathAnswer::Open(a))]);
        let before = Before { paths: &renamed, files: &open.files };
        assert_eq!(sleeper.answers(&["disk.img"], Some(before)).0["disk.img"], PathAnswer::Open(a));
    }

    #[test]
    fn a_link_that_was_moved_does_not_move_the_disk() {
        let sleeper = Sleeper::new("a");
        sleeper.link("a/disk.img", "link");
        let path = sleeper.path("link");
        let a = identity(&path);
        let (first, open) = sleeper.answers(&[&path], None);
        fs::remove_file(&path).unwrap();
        sleeper.link("b/disk.img", "link");
        let before = Before { paths: &first, files: &open.files };
        assert_eq!(sleeper.answers(&[&path], Some(before)).0[&path], PathAnswer::Open(a));
    }

    #[test]
    fn the_steps_of_all_paths_of_a_process_are_bounded() {
        let sleeper = Sleeper::new("a");
        sleeper.link("a/../".repeat(800), "long");
        fs::create_dir(sleeper.path("c")).unwrap();
        fs::write(sleeper.path("c/disk.img"), "c").unwrap();
        let last = sleeper.path("c/disk.img");
        let closed = PathAnswer::Closed(identity(&last));
        for (count, is_known) in [(10, true), (100, false)] {
            let long = (0..count).map(|at| sleeper.path(&format!("long/none{at}")));
            let paths: Vec<String> = long.chain([last.clone()]).collect();
            let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
            let answers = sleeper.answers(&paths, None).0;
            assert_eq!(answers.len(), paths.len());
            let answer = &answers[&last];
            if is_known {
                assert_eq!(*answer, closed);
            } else {
                let is_loop = |why: &String| why.contains("symbolic links");
                assert!(matches!(answer, PathAnswer::Unknown(why) if is_loop(why)), "{answer:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_followed_is_unknown_for_a_true_reason() {
        let sleeper = Sleeper::new("a");
        sleeper.link("loop", "loop");
        sleeper.link("pong", "ping");
        sleeper.link("ping", "pong");
        sleeper.link("/proc/self/cwd/none", "magic");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            sleeper.path("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        for (name, part) in [
            ("loop", "symbolic links"),
            ("ping", "symbolic links"),
            ("magic", "a lookup may block"),
            ("none", "nothing is at its path"),
            ("a/disk.img/none", "nothing is at its path"),
            ("fifo", "neither a file nor a block device"),
            ("a", "neither a file nor a block device"),
        ] {
            let PathAnswer::Unknown(why) = sleeper.answer(&sleeper.path(name)) else {
                panic!("{name} is known")
            };
            assert!(why.contains(part), "{name}: {why}");
        }
    }
}

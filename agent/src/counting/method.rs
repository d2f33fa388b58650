//! The methods that count a disk image: a table of rules, of which the first one that fits an image decides.

use kvmeter_common::Layer;

use crate::{
    inventory::{OpenFile, Submission, VmProcess},
    probe::{ImageHooks, Method},
};

/// The methods that work on this host.
pub(super) trait Works {
    /// Whether this one does, or why not.
    fn works(&self, method: Method) -> Result<(), &str>;
}

impl Works for ImageHooks {
    fn works(&self, method: Method) -> Result<(), &str> {
        self.availability(method)
    }
}

/// The methods that count an image, the one that the status names first, and the layer of the image's record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) methods: &'static [Method],
    pub(super) layer: Layer,
    /// Reason for the first method, shown by `kvmeter status`.
    pub(super) why: &'static str,
}

/// What a rule asks of an image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Condition {
    /// The disk is configured for io_uring, and the VMM has a ring.
    UsesRing,
    /// The configuration is unknown and the VMM has a ring, or is another one than QEMU, which may get one at any time:
    /// requests may go through it.
    MayUseRing,
    /// The disk is configured for io_submit(2).
    UsesAio,
    /// io_submit(2) is possible, and `aio` works.
    MayUseAio,
    /// The VMM uses io_submit(2), and the configuration does not say for which disks: QEMU past the page cache only, and where it
    /// is unknown, another VMM always.
    MaySubmit,
    /// The file is open with `O_DIRECT`.
    IsDirect,
    /// Direct I/O on the file goes through iomap, and `dio` works.
    HasDio,
    /// The VMM uses positioned calls only (pread, pwrite).
    HasPositions,
    /// The VMM uses positioned calls only, and `vfs`, which hooks these, works.
    HasVfs,
    /// A block device open with `O_DIRECT` for which `bdev` works, while `vfs`, `aio` and `io_uring` would miss requests.
    NeedsBdev,
}

/// A row of [`RULES`].
#[derive(Debug)]
struct Rule {
    /// All have to hold.
    conditions: &'static [Condition],
    methods: &'static [Method],
    why: &'static str,
}

const fn rule(
    conditions: &'static [Condition],
    methods: &'static [Method],
    why: &'static str,
) -> Rule {
    Rule { conditions, methods, why }
}

const BY_RING: &str = "its requests go by io_uring";
const BY_IOMAP: &str = "past the page cache, on a filesystem with iomap";
const BY_BLOCK_LAYER: &str = "a block device, past the page cache";
const BY_AIO: &str = "its requests go by io_submit(2)";
const DIRECT_CALLS: &str = "past the page cache, by calls of QEMU";
const CACHED_CALLS: &str = "in the page cache, by calls of QEMU";
const NOTHING_ELSE: &str = "past the page cache, where nothing else works";
const NO_VFS: &str = "in the page cache, and vfs does not work here";
const ANY_CALL: &str = "in the page cache, by any call";

/// The rules, in the order in which they are tried. The methods of a rule have to work all, or the image is not counted: a
/// part of its requests would look like all of them.
///
/// Of the methods of a rule exactly one counts a request. `vfs`, `aio` and `io_uring` share a record; `syscall` sees the
/// calls of io_submit(2), too, so `aio` is never beside it.
#[rustfmt::skip]
const RULES: &[Rule] = {
    use Condition::*;
    use Method::*;
    &[
        // QEMU hands a request with a misaligned buffer to a worker thread, so a ring is not enough for direct I/O.
        rule(&[UsesRing, HasDio], &[IoUring, Dio], BY_RING),
        rule(&[UsesRing, IsDirect, HasVfs], &[IoUring, Vfs], BY_RING),
        rule(&[UsesRing], &[IoUring], BY_RING),
        // One hook sees all direct I/O in iomap, however it was submitted.
        rule(&[HasDio], &[Dio], BY_IOMAP),
        // Last resort: the block layer sees large requests split, and completions in interrupts may be missed.
        rule(&[NeedsBdev], &[Bdev], BY_BLOCK_LAYER),
        rule(&[UsesAio], &[Aio, Vfs], BY_AIO),
        // `syscall` would miss what goes by io_submit(2).
        rule(&[MaySubmit, MayUseRing], &[Aio, Vfs, IoUring], BY_AIO),
        rule(&[MaySubmit], &[Aio, Vfs], BY_AIO),
        rule(&[HasVfs, IsDirect, MayUseAio, MayUseRing], &[Vfs, Aio, IoUring], DIRECT_CALLS),
        rule(&[HasVfs, IsDirect, MayUseAio], &[Vfs, Aio], DIRECT_CALLS),
        rule(&[HasVfs, IsDirect, MayUseRing], &[Vfs, IoUring], DIRECT_CALLS),
        rule(&[HasVfs, IsDirect], &[Vfs], DIRECT_CALLS),
        rule(&[HasVfs, MayUseRing], &[Vfs, IoUring], CACHED_CALLS),
        rule(&[HasVfs], &[Vfs], CACHED_CALLS),
        // `syscall` slows down every system call of the host, so it comes after everything else.
        rule(&[IsDirect, MayUseRing], &[Syscall, IoUring], NOTHING_ELSE),
        rule(&[IsDirect], &[Syscall], NOTHING_ELSE),
        rule(&[HasPositions, MayUseRing], &[Syscall, IoUring], NO_VFS),
        rule(&[HasPositions], &[Syscall], NO_VFS),
        rule(&[MayUseRing], &[Syscall, IoUring], ANY_CALL),
        rule(&[], &[Syscall], ANY_CALL),
    ]
};

impl Rule {
    /// The layer in which the methods count together; they all count in records of this layer.
    fn layer(&self) -> Layer {
        let mut methods = self.methods.iter();
        // Programs at functions and `io_uring` count in records of `Function`.
        if methods.clone().any(|method| matches!(method, Method::Vfs | Method::Aio)) {
            return Layer::Function;
        }
        methods.next().map_or(Layer::Call, |first| first.layer())
    }
}

/// An image for which methods are to be chosen.
struct Image<'a, W> {
    works: W,
    file: &'a OpenFile,
    process: &'a VmProcess,
    submission: Submission,
    has_submitted: bool,
}

impl<'a, W: Fn(Method) -> Result<(), &'a str>> Image<'a, W> {
    fn can(&self, method: Method) -> bool {
        (self.works)(method).is_ok()
    }

    /// Whether the configuration does not say how the VMM submits its requests.
    const fn is_open(&self) -> bool {
        matches!(self.submission, Submission::Unknown | Submission::Unset)
    }

    fn meets(&self, condition: Condition) -> bool {
        let Self { file, process, submission, has_submitted, .. } = *self;
        let is_block_device = file.identity.is_block_device();
        match condition {
            Condition::UsesRing => submission == Submission::IoUring && process.has_io_uring,
            Condition::MayUseRing => {
                let may_get_one = !process.has_positions && self.can(Method::IoUring);
                self.is_open() && (process.has_io_uring || may_get_one)
            }
            Condition::UsesAio => submission == Submission::Native,
            // Configured for io_uring without a ring: the VMM submits in another way.
            Condition::MayUseAio => {
                (self.is_open() || submission == Submission::IoUring) && self.can(Method::Aio)
            }
            Condition::MaySubmit => {
                let may = match submission {
                    Submission::Unknown => file.is_direct || !process.has_positions,
                    Submission::Unset => !process.has_positions,
                    Submission::Threads | Submission::Native | Submission::IoUring => false,
                };
                may && (process.has_aio || has_submitted)
            }
            Condition::IsDirect => file.is_direct,
            Condition::HasDio => {
                file.is_direct && file.has_iomap && !is_block_device && self.can(Method::Dio)
            }
            Condition::HasPositions => process.has_positions,
            Condition::HasVfs => process.has_positions && self.can(Method::Vfs),
            Condition::NeedsBdev => {
                let sees_all = self.meets(Condition::HasVfs)
                    && match submission {
                        Submission::Threads | Submission::IoUring => true,
                        Submission::Native => self.can(Method::Aio),
                        Submission::Unknown | Submission::Unset => {
                            self.can(Method::Aio)
                                && (!process.has_io_uring || self.can(Method::IoUring))
                        }
                    };
                is_block_device && file.is_direct && !sees_all && self.can(Method::Bdev)
            }
        }
    }
}

/// Chooses the methods that count the requests on a file. `works` returns whether a method works on this host, or why not.
/// `has_submitted`: the VMM was seen to call io_submit(2).
///
/// # Errors
///
/// Why the file cannot be counted, for people.
pub(super) fn choose<'a>(
    works: impl Fn(Method) -> Result<(), &'a str>,
    file: &'a OpenFile,
    process: &'a VmProcess,
    submission: Submission,
    has_submitted: bool,
) -> Result<Choice, String> {
    let image = Image { works, file, process, submission, has_submitted };
    let fits = |rule: &&Rule| rule.conditions.iter().all(|condition| image.meets(*condition));
    let rule = RULES.iter().find(fits).unwrap_or(&RULES[RULES.len() - 1]);
    for &method in rule.methods {
        (image.works)(method)
            .map_err(|why| format!("it needs {}, which does not work: {why}", method.name()))?;
    }
    Ok(Choice { methods: rule.methods, layer: rule.layer(), why: rule.why })
}

/// Chooses the methods for direct I/O on a file that the VMM has not opened yet. All of them count in one layer.
pub(super) fn choose_for_new(hooks: &dyn Works, is_block_device: bool) -> &'static [Method] {
    let can = |method| hooks.works(method).is_ok();
    if !is_block_device && can(Method::Dio) {
        &[Method::Dio]
    } else if can(Method::Vfs) && can(Method::Aio) {
        &[Method::Vfs, Method::Aio]
    } else {
        &[Method::Bdev]
    }
}

#[cfg(test)]
mod tests {
    use kvmeter_common::ImageKey;

    use super::{Method::*, *};
    use crate::inventory::FileIdentity;

    /// The choice for a file on iomap, of a VMM that uses positioned calls.
    fn chosen(
        has: &[Method],
        kind: (bool, bool),
        submission: Submission,
        has_io_uring: bool,
    ) -> Result<(Vec<Method>, Layer), String> {
        let process = VmProcess { has_io_uring, has_positions: true, ..VmProcess::default() };
        let choice = choice(has, kind, submission, &process);
        choice.map(|choice| (choice.methods.to_vec(), choice.layer))
    }

    fn choice(
        has: &[Method],
        kind: (bool, bool),
        submission: Submission,
        process: &VmProcess,
    ) -> Result<Choice, String> {
        let works = |method| if has.contains(&method) { Ok(()) } else { Err("not here") };
        choose(works, &open_file(kind), process, submission, false)
    }

    fn open_file((is_direct, is_block_device): (bool, bool)) -> OpenFile {
        OpenFile {
            path: "/image".to_owned(),
            identity: FileIdentity {
                device: 1,
                file: if is_block_device { ImageKey::NO_FILE } else { 1 },
            },
            mount: 1,
            device: 1,
            is_direct,
            is_writable: true,
            has_write_lock: false,
            has_iomap: true,
            answers_from_memory: true,
        }
    }

    const CACHED_FILE: (bool, bool) = (false, false);
    const DIRECT_FILE: (bool, bool) = (true, false);
    const DIRECT_DEVICE: (bool, bool) = (true, true);

    /// The layer of the records in which all of these methods count.
    fn layer_of(methods: &[Method]) -> Layer {
        match methods {
            [Dio] => Layer::Direct,
            [Bdev] => Layer::Block,
            [Syscall] | [Syscall, IoUring] => Layer::Call,
            [IoUring] | [IoUring, Dio] => Layer::Ring,
            _ if methods.contains(&Syscall) => panic!("{methods:?} do not go together"),
            _ => Layer::Function,
        }
    }

    #[test]
    fn every_rule_is_reached() {
        use Submission::{IoUring as Ring, Native, Threads, Unknown};
        let all = &Method::ALL[..];
        let functions = &[Vfs, Aio, Bdev, Syscall, IoUring][..];
        let no_aio = &[Vfs, Bdev, Syscall, IoUring][..];
        let no_ring = &[Vfs, Aio, Bdev, Syscall][..];
        let events = &[Bdev, Syscall, IoUring][..];
        // One row for each rule, in its order. The last two: the VMM has a ring, and uses positioned calls only.
        let rows = [
            (all, DIRECT_FILE, Ring, true, true),
            (functions, DIRECT_FILE, Ring, true, true),
            (all, CACHED_FILE, Ring, true, true),
            (all, DIRECT_FILE, Threads, false, true),
            (events, DIRECT_DEVICE, Threads, false, true),
            (functions, DIRECT_FILE, Native, false, true),
            (all, CACHED_FILE, Unknown, true, false),
            (no_ring, CACHED_FILE, Unknown, false, false),
            (functions, DIRECT_FILE, Unknown, true, true),
            (functions, DIRECT_FILE, Unknown, false, true),
            (no_aio, DIRECT_FILE, Unknown, true, true),
            (functions, DIRECT_FILE, Threads, false, true),
            (all, CACHED_FILE, Unknown, true, true),
            (all, CACHED_FILE, Unknown, false, true),
            (events, DIRECT_FILE, Unknown, true, true),
            (events, DIRECT_FILE, Unknown, false, true),
            (events, CACHED_FILE, Unknown, true, true),
            (events, CACHED_FILE, Threads, false, true),
            (all, CACHED_FILE, Unknown, true, false),
            (all, CACHED_FILE, Threads, true, false),
        ];
        assert_eq!(rows.len(), RULES.len());
        for (rule, (has, file, submission, has_io_uring, has_positions)) in RULES.iter().zip(rows) {
            let has_aio = rule.conditions.contains(&Condition::MaySubmit);
            let process =
                VmProcess { has_io_uring, has_aio, has_positions, ..VmProcess::default() };
            let choice = choice(has, file, submission, &process).unwrap();
            assert_eq!((choice.methods, choice.why), (rule.methods, rule.why), "{rule:?}");
            assert_eq!(choice.layer, layer_of(rule.methods), "{rule:?}");
        }
    }

    #[test]
    fn a_vmm_that_may_use_io_submit_is_not_counted_where_nothing_sees_that() {
        let process = VmProcess { has_aio: true, ..VmProcess::default() };
        let chosen = |has: &[Method], file| {
            choice(has, file, Submission::Unknown, &process).map(|choice| choice.methods)
        };
        let events = &[Dio, Bdev, Syscall, IoUring][..];
        let none = chosen(events, CACHED_FILE).map(<[Method]>::len);
        assert_eq!(none, Err("it needs aio, which does not work: not here".to_owned()));
        assert_eq!(chosen(&Method::ALL, CACHED_FILE).unwrap(), &[Aio, Vfs, IoUring]);
        // One hook sees all direct I/O, however it was submitted.
        assert_eq!(chosen(events, DIRECT_FILE).unwrap(), &[Dio]);
        assert_eq!(chosen(events, DIRECT_DEVICE).unwrap(), &[Bdev]);
    }

    #[test]
    fn a_vmm_that_was_seen_to_use_io_submit_may_do_so_for_any_disk() {
        let events = &[Dio, Bdev, Syscall, IoUring][..];
        let (other, qemu) =
            (VmProcess::default(), VmProcess { has_positions: true, ..VmProcess::default() });
        let no_iomap = OpenFile { has_iomap: false, ..open_file(DIRECT_FILE) };
        for (file, process, submission, is_counted) in [
            (&open_file(CACHED_FILE), &other, Submission::Unknown, false),
            (&no_iomap, &other, Submission::Unknown, false),
            (&no_iomap, &qemu, Submission::Unknown, false),
            // QEMU uses it past the page cache only, and not for a disk that is configured for threads.
            (&open_file(CACHED_FILE), &qemu, Submission::Unknown, true),
            (&no_iomap, &qemu, Submission::Threads, true),
            // What another disk of a QEMU is configured for is not this one's.
            (&no_iomap, &qemu, Submission::Unset, true),
            (&no_iomap, &other, Submission::Unset, false),
            (&open_file(CACHED_FILE), &other, Submission::Unset, false),
            // One hook sees all.
            (&open_file(DIRECT_FILE), &other, Submission::Unknown, true),
        ] {
            let works = |method| if events.contains(&method) { Ok(()) } else { Err("not here") };
            let chosen = |was_seen| choose(works, file, process, submission, was_seen);
            assert!(chosen(false).is_ok());
            assert_eq!(chosen(true).is_ok(), is_counted, "{file:?} {process:?} {submission:?}");
        }
    }

    #[test]
    fn a_ring_that_a_vmm_gets_later_is_hooked_already() {
        let events = &[Dio, Bdev, Syscall, IoUring][..];
        let (other, qemu) =
            (VmProcess::default(), VmProcess { has_positions: true, ..VmProcess::default() });
        for (has, process, methods) in [
            (events, &other, &[Syscall, IoUring][..]),
            (&[Dio, Syscall], &other, &[Syscall]),
            // It has its ring from its start on.
            (events, &qemu, &[Syscall]),
        ] {
            let chosen = choice(has, CACHED_FILE, Submission::Unknown, process);
            assert_eq!(chosen.unwrap().methods, methods);
        }
    }

    #[test]
    fn what_a_kernel_has_is_used_the_best_way_first() {
        use Submission::{IoUring as Ring, Native, Threads, Unknown};
        let all = &Method::ALL[..];
        // A kernel without fentry at functions, and one without the tracepoints of iomap.
        let events = &[Dio, Bdev, Syscall, IoUring][..];
        let functions = &[Vfs, Aio, Bdev, Syscall, IoUring][..];
        let bare = &[Bdev, Syscall, IoUring][..];
        for (has, file, submission, methods) in [
            (all, DIRECT_FILE, Threads, &[Dio][..]),
            (all, DIRECT_FILE, Native, &[Dio]),
            (all, CACHED_FILE, Threads, &[Vfs]),
            (all, CACHED_FILE, Unknown, &[Vfs]),
            (all, DIRECT_DEVICE, Threads, &[Vfs]),
            (all, DIRECT_DEVICE, Native, &[Aio, Vfs]),
            (all, DIRECT_DEVICE, Unknown, &[Vfs, Aio]),
            (events, DIRECT_FILE, Native, &[Dio]),
            (events, CACHED_FILE, Threads, &[Syscall]),
            (events, DIRECT_DEVICE, Threads, &[Bdev]),
            (events, DIRECT_DEVICE, Native, &[Bdev]),
            (functions, DIRECT_FILE, Threads, &[Vfs]),
            (functions, DIRECT_FILE, Native, &[Aio, Vfs]),
            (functions, DIRECT_FILE, Unknown, &[Vfs, Aio]),
            (bare, DIRECT_FILE, Threads, &[Syscall]),
        ] {
            let chosen = chosen(has, file, submission, false);
            let (chosen, layer) = chosen.unwrap();
            assert_eq!(chosen, methods, "{has:?} {file:?} {submission:?}");
            assert_eq!(layer, layer_of(methods), "{methods:?}");
        }
        for (has, file, submission, methods) in [
            (all, CACHED_FILE, Ring, &[IoUring][..]),
            (all, DIRECT_FILE, Ring, &[IoUring, Dio]),
            (all, DIRECT_DEVICE, Ring, &[IoUring, Vfs]),
            (functions, DIRECT_FILE, Ring, &[IoUring, Vfs]),
            (events, DIRECT_DEVICE, Ring, &[IoUring]),
            (all, CACHED_FILE, Unknown, &[Vfs, IoUring]),
            (all, DIRECT_DEVICE, Unknown, &[Vfs, Aio, IoUring]),
            // Without the tracepoints of io_uring only the block layer sees all requests.
            (&[Vfs, Aio, Bdev, Syscall][..], DIRECT_DEVICE, Unknown, &[Bdev]),
        ] {
            let chosen = chosen(has, file, submission, true);
            let (chosen, layer) = chosen.unwrap();
            assert_eq!(chosen, methods, "{has:?} {file:?} {submission:?}");
            assert_eq!(layer, layer_of(methods), "{methods:?}");
        }
        let none = chosen(bare, DIRECT_FILE, Native, false);
        assert_eq!(none, Err("it needs aio, which does not work: not here".to_owned()));
    }
}

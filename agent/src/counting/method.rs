//! Which hooks count the requests on an image.

use kvmeter_common::Layer;

use crate::{
    inventory::{OpenFile, Submission, VmProcess},
    probe::{ImageHooks, Method},
};

/// The methods of an image, the one that the status names first, and the layer of its record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Choice {
    pub(super) methods: Vec<Method>,
    pub(super) layer: Layer,
    /// For people.
    pub(super) why: &'static str,
}

impl Choice {
    fn of(methods: Vec<Method>, file: &OpenFile, process: &VmProcess) -> Self {
        let why = match (methods.first(), file.is_direct) {
            (Some(Method::Dio), _) => "past the page cache, on a filesystem with iomap",
            (Some(Method::Bdev), _) => "a block device, past the page cache",
            (Some(Method::IoUring), _) => "its requests go by io_uring",
            (Some(Method::Aio), _) => "its requests go by io_submit(2)",
            (Some(Method::Vfs), true) => "past the page cache, by calls of QEMU",
            (Some(Method::Vfs), false) => "in the page cache, by calls of QEMU",
            (_, true) => "past the page cache, where nothing else works",
            (_, false) if process.has_positions => "in the page cache, and vfs does not work here",
            (_, false) => "in the page cache, by any call",
        };
        let is_at_functions = |method: &Method| matches!(method, Method::Vfs | Method::Aio);
        let layer = match methods.first() {
            _ if methods.iter().any(is_at_functions) => Layer::Function,
            Some(first) => first.layer(),
            None => Layer::Call,
        };
        Self { methods, layer, why }
    }
}

/// How requests on a file are counted, or why they cannot be. `works` says whether a method works here, or why not.
pub(super) fn of_file<'a>(
    works: impl Fn(Method) -> Result<(), &'a str>,
    file: &OpenFile,
    process: &VmProcess,
    submission: Submission,
) -> Result<Choice, String> {
    let can = |method| works(method).is_ok();
    let calls =
        if process.has_positions && can(Method::Vfs) { Method::Vfs } else { Method::Syscall };
    let is_by_ring = submission == Submission::IoUring && process.has_io_uring;
    let may_be_by_ring = process.has_io_uring && submission != Submission::Native;
    let is_block_device = file.identity.is_block_device();
    let has_dio = file.is_direct && file.has_iomap && !is_block_device && can(Method::Dio);
    let methods = match submission {
        // A request whose memory does not fit is made by a thread.
        _ if is_by_ring && has_dio => vec![Method::IoUring, Method::Dio],
        _ if is_by_ring && file.is_direct && calls == Method::Vfs => vec![Method::IoUring, calls],
        _ if is_by_ring => vec![Method::IoUring],
        _ if has_dio => vec![Method::Dio],
        Submission::Native => vec![Method::Aio, Method::Vfs],
        Submission::Threads => vec![calls],
        Submission::IoUring | Submission::Unknown => {
            // Those that see a call where it begins do not count where it is seen at its function.
            let by_aio = file.is_direct && calls == Method::Vfs && can(Method::Aio);
            let by_aio = by_aio.then_some(Method::Aio);
            let by_ring = may_be_by_ring.then_some(Method::IoUring);
            [Some(calls), by_aio, by_ring].into_iter().flatten().collect()
        }
    };
    // Of large requests on a device the block layer sees parts, and their ends in interrupts: only where nothing else sees
    // all of them.
    let has_all = methods.iter().all(|method| can(*method))
        && calls == Method::Vfs
        && (submission != Submission::Unknown || can(Method::Aio));
    if is_block_device && file.is_direct && !is_by_ring && !has_all && can(Method::Bdev) {
        return Ok(Choice::of(vec![Method::Bdev], file, process));
    }
    for &method in &methods {
        works(method)
            .map_err(|why| format!("it needs {}, which does not work: {why}", method.name()))?;
    }
    Ok(Choice::of(methods, file, process))
}

/// How requests are counted past the page cache on what is not open yet; all go by one layer.
pub(super) fn of_new(hooks: &ImageHooks, is_block_device: bool) -> &'static [Method] {
    let can = |method| hooks.availability(method).is_ok();
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

    /// Of a VMM that says with each request where in the file.
    fn chosen(
        has: &[Method],
        (is_direct, is_block_device): (bool, bool),
        submission: Submission,
        has_io_uring: bool,
    ) -> Result<(Vec<Method>, Layer), String> {
        let file = OpenFile {
            path: "/image".to_owned(),
            identity: FileIdentity {
                device: 1,
                file: if is_block_device { ImageKey::NO_FILE } else { 1 },
            },
            mount: 1,
            device: 1,
            is_direct,
            has_iomap: true,
        };
        let process = VmProcess { has_io_uring, has_positions: true, ..VmProcess::default() };
        let works = |method| if has.contains(&method) { Ok(()) } else { Err("not here") };
        let choice = of_file(works, &file, &process, submission);
        choice.map(|choice| (choice.methods, choice.layer))
    }

    const CACHED_FILE: (bool, bool) = (false, false);
    const DIRECT_FILE: (bool, bool) = (true, false);
    const DIRECT_DEVICE: (bool, bool) = (true, true);

    /// Programs of all of these methods count in a record of this layer.
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
    fn what_a_kernel_has_is_used_the_best_way_first() {
        use Submission::{IoUring as Ring, Native, Threads, Unknown};
        let all = &Method::ALL[..];
        // One without programs at functions, and one without events of direct I/O.
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
            // Without events of io_uring nothing else sees all requests.
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

//! Which hooks count the requests on an image.

use super::{OpenFile, Submission, VmProcess};
use crate::probe::{ImageHooks, Method};

/// How requests on a file are counted, the way that the status names first; at least one. All go by one route. Why
/// they cannot be, else. `works` says whether a method works here, or why not.
pub(super) fn of_file<'a>(
    works: impl Fn(Method) -> Result<(), &'a str>,
    file: &OpenFile,
    process: &VmProcess,
    submission: Submission,
) -> Result<Vec<Method>, String> {
    let can = |method| works(method).is_ok();
    let calls =
        if process.has_positions && can(Method::Vfs) { Method::Vfs } else { Method::Syscall };
    let is_by_ring = submission == Submission::IoUring && process.has_io_uring;
    let is_block_device = file.identity.is_block_device();
    if file.is_direct && !is_by_ring {
        if file.has_iomap && !is_block_device && can(Method::Dio) {
            return Ok(vec![Method::Dio]);
        }
        // The block layer sees parts of large requests, and their ends in interrupts.
        let has_whole = match submission {
            Submission::Threads => calls == Method::Vfs,
            Submission::Native => can(Method::Aio),
            Submission::IoUring | Submission::Unknown => calls == Method::Vfs && can(Method::Aio),
        };
        if is_block_device && !has_whole && can(Method::Bdev) {
            return Ok(vec![Method::Bdev]);
        }
    }
    let methods = match submission {
        Submission::Native => vec![Method::Aio],
        Submission::Threads => vec![calls],
        _ if is_by_ring => vec![Method::IoUring],
        Submission::IoUring | Submission::Unknown => {
            let by_aio = (file.is_direct && can(Method::Aio)).then_some(Method::Aio);
            let by_ring = process.has_io_uring.then_some(Method::IoUring);
            [Some(calls), by_aio, by_ring].into_iter().flatten().collect()
        }
    };
    for &method in &methods {
        works(method)
            .map_err(|why| format!("it needs {}, which does not work: {why}", method.name()))?;
    }
    Ok(methods)
}

/// How requests are counted past the page cache on what is not open yet; all go by one route.
pub(super) fn of_new(hooks: &ImageHooks, is_block_device: bool) -> &'static [Method] {
    let can = |method| hooks.can(method).is_ok();
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
    ) -> Result<Vec<Method>, String> {
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
        of_file(works, &file, &process, submission)
    }

    const CACHED_FILE: (bool, bool) = (false, false);
    const DIRECT_FILE: (bool, bool) = (true, false);
    const DIRECT_DEVICE: (bool, bool) = (true, true);

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
            (all, DIRECT_DEVICE, Native, &[Aio]),
            (all, DIRECT_DEVICE, Unknown, &[Vfs, Aio]),
            (events, DIRECT_FILE, Native, &[Dio]),
            (events, CACHED_FILE, Threads, &[Syscall]),
            (events, DIRECT_DEVICE, Threads, &[Bdev]),
            (events, DIRECT_DEVICE, Native, &[Bdev]),
            (functions, DIRECT_FILE, Threads, &[Vfs]),
            (functions, DIRECT_FILE, Native, &[Aio]),
            (functions, DIRECT_FILE, Unknown, &[Vfs, Aio]),
            (bare, DIRECT_FILE, Threads, &[Syscall]),
        ] {
            let chosen = chosen(has, file, submission, false);
            assert_eq!(chosen.as_deref(), Ok(methods), "{has:?} {file:?} {submission:?}");
        }
        let by_ring = chosen(all, DIRECT_FILE, Ring, true);
        assert_eq!(by_ring.as_deref(), Ok(&[IoUring][..]));
        let unsaid = chosen(all, CACHED_FILE, Unknown, true);
        assert_eq!(unsaid.as_deref(), Ok(&[Vfs, IoUring][..]));
        let none = chosen(bare, DIRECT_FILE, Native, false);
        assert_eq!(none.as_deref(), Err(&"it needs aio, which does not work: not here".to_owned()));
    }
}

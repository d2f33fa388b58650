//! The temporary files to which a QEMU writes instead of its images (`-snapshot`, `snapshot=on`).
//!
//! QEMU removes the name of such a file at once, and writes no backing file into its header (`bdrv_append_temp_snapshot()` of its
//! block.c). The order of descriptors tells which image it belongs to: QEMU opens it right after the image, which it opens for
//! reading only. Drives are opened in the order of their options (`configure_blockdev()` of its vl.c).

use std::{
    collections::{BTreeMap, HashMap},
    rc::Rc,
};

use super::{disk_paths::last_of, files::OpenFiles, process::path_of_target};
use crate::inventory::{DomainDisk, FileIdentity, PathAnswer, VmProcess};

/// What `create_tmp_file()` of QEMU's block.c begins a name with, and the number of letters after it.
const PREFIX: &str = "vl.";
const LETTERS: usize = 6;

/// Adds its temporary file to each disk. `descriptors`: with the targets of their links.
pub(super) fn add(
    disks: &mut [DomainDisk],
    paths: &mut BTreeMap<String, PathAnswer>,
    open: &OpenFiles,
    descriptors: &[(u32, Rc<str>)],
    earlier: Option<&VmProcess>,
) {
    let mut opened: Vec<Opened<'_>> = descriptors
        .iter()
        .filter_map(|(fd, target)| {
            let identity = *open.by_descriptor.get(fd)?;
            let is_writable = open.file(identity)?.is_writable;
            Some(Opened { fd: *fd, target, identity, is_writable })
        })
        .collect();
    opened.sort_unstable_by_key(|file| file.fd);
    for (at, file) in overlays(disks, paths, &opened, earlier) {
        let path = path_of_target(file.target).to_owned();
        paths.insert(path.clone(), PathAnswer::Open(file.identity));
        disks[at].others.push(path);
    }
}

/// A descriptor of a file.
#[derive(Clone, Copy, Debug)]
struct Opened<'a> {
    fd: u32,
    target: &'a str,
    identity: FileIdentity,
    is_writable: bool,
}

impl Opened<'_> {
    fn is_temporary(&self) -> bool {
        let path = path_of_target(self.target);
        let letters = last_of(path).strip_prefix(PREFIX);
        path.len() < self.target.len()
            && letters.is_some_and(|letters| {
                letters.len() == LETTERS && letters.bytes().all(|byte| byte.is_ascii_alphanumeric())
            })
    }
}

/// The temporary files, each with the place of its disk. `opened`: ascending.
fn overlays<'a>(
    disks: &[DomainDisk],
    paths: &BTreeMap<String, PathAnswer>,
    opened: &[Opened<'a>],
    earlier: Option<&VmProcess>,
) -> Vec<(usize, Opened<'a>)> {
    let of_images = disks_of_images(disks, paths);
    // QEMU opens an image again when it commits to it: then the order tells nothing any more.
    let before = earlier.map(disks_before).unwrap_or_default();
    let place_of: HashMap<&str, usize> =
        disks.iter().zip(0..).map(|(disk, at)| (disk.target.as_str(), at)).collect();
    let mut found: BTreeMap<usize, Vec<Opened<'a>>> = BTreeMap::new();
    // What each image is followed by, each time that it was opened.
    let mut following: HashMap<FileIdentity, Vec<Vec<Opened<'a>>>> = HashMap::new();
    let mut last = None;
    for file in opened {
        if file.is_temporary() {
            let known = before.get(&(path_of_target(file.target), file.identity));
            if let Some(at) = known.and_then(|name| place_of.get(name)) {
                found.entry(*at).or_default().push(*file);
            } else if let Some(image) = last {
                let times: Option<&mut Vec<_>> = following.get_mut(&image);
                times.and_then(|times| times.last_mut()).into_iter().for_each(|it| it.push(*file));
            }
        } else if of_images.contains_key(&file.identity) {
            following.entry(file.identity).or_default().push(Vec::new());
            last = Some(file.identity).filter(|_| !file.is_writable);
        }
    }
    for (image, times) in following {
        let of_image = of_images.get(&image).map_or(&[][..], Vec::as_slice);
        // Of several disks each has opened the image, in their order if all are drives; a node (`-blockdev`), which is opened before the
        // drives, has no temporary file.
        let are_all_drives = times.len() == of_image.len() && times.iter().all(|it| it.len() == 1);
        match of_image {
            [at] => found.entry(*at).or_default().extend(times.into_iter().flatten()),
            all if are_all_drives => {
                for (at, files) in all.iter().zip(times) {
                    found.entry(*at).or_default().extend(files);
                }
            }
            _ => {}
        }
    }
    let single = |(at, files): (usize, Vec<Opened<'a>>)| match files[..] {
        [file] => Some((at, file)),
        _ => None,
    };
    found.into_iter().filter_map(single).collect()
}

/// The places of the disks to which each image belongs, ascending.
fn disks_of_images(
    disks: &[DomainDisk],
    paths: &BTreeMap<String, PathAnswer>,
) -> HashMap<FileIdentity, Vec<usize>> {
    let mut found: HashMap<_, Vec<usize>> = HashMap::new();
    for (at, disk) in disks.iter().enumerate() {
        for path in disk.paths() {
            if let Some(PathAnswer::Open(image)) = paths.get(path) {
                let of = found.entry(*image).or_default();
                if of.last() != Some(&at) {
                    of.push(at);
                }
            }
        }
    }
    found
}

/// The names of the disks that had further files at an earlier scan, by path and file.
fn disks_before(vm: &VmProcess) -> HashMap<(&str, FileIdentity), &str> {
    let others = vm
        .devices
        .disks
        .iter()
        .flat_map(|disk| disk.others.iter().map(|path| (path.as_str(), disk.target.as_str())));
    let open = |(path, name)| match vm.paths.get(path)? {
        PathAnswer::Open(file) => Some(((path, *file), name)),
        PathAnswer::Closed(_) | PathAnswer::Unknown(_) => None,
    };
    others.filter_map(open).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::devices::disk, *};
    use crate::sources::storage_location::Location;

    const fn identity(file: u64) -> FileIdentity {
        FileIdentity { device: 1, file }
    }

    /// The overlay of each disk, by what a QEMU with disks `/a`, `/b` and `/c` has open: number of the file, target, whether it is
    /// writable.
    fn found(files: &[(u64, &str, bool)], earlier: Option<&VmProcess>) -> Vec<(usize, u64)> {
        found_of(&["/a", "/b", "/c"], files, earlier)
    }

    /// The same of a QEMU with a disk of each of these images.
    fn found_of(
        images: &[&str],
        files: &[(u64, &str, bool)],
        earlier: Option<&VmProcess>,
    ) -> Vec<(usize, u64)> {
        let local = |path: &&str| {
            let location = Location::Local((*path).to_owned());
            disk(path, Some(location), "raw", false)
        };
        let disks: Vec<_> = images.iter().map(local).collect();
        let answer =
            |(path, file): (&str, u64)| (path.to_owned(), PathAnswer::Open(identity(file)));
        let paths = [("/a", 1), ("/b", 2), ("/c", 3)].map(answer).into();
        let opened: Vec<_> = (3..)
            .zip(files)
            .map(|(fd, &(file, target, is_writable))| Opened {
                fd,
                target,
                identity: identity(file),
                is_writable,
            })
            .collect();
        let found = overlays(&disks, &paths, &opened, earlier);
        found.into_iter().map(|(at, file)| (at, file.identity.file)).collect()
    }

    #[test]
    fn a_temporary_file_belongs_to_the_image_that_was_opened_before_it() {
        let [x, y] = ["/var/tmp/vl.QV02Y3 (deleted)", "/tmp/vl.40Z4Y3 (deleted)"];
        let (a, b) = ((1, "/a", false), (2, "/b", false));
        // The image below the first one is not named.
        let all = [a, (9, "/base", false), (11, x, true), b, (12, y, true), (3, "/c", true)];
        assert_eq!(found(&all, None), [(0, 11), (1, 12)]);
        assert_eq!(found(&[b, (11, x, true)], None), [(1, 11)]);
        // It is written itself.
        assert_eq!(found(&[a, (2, "/b", true), (11, x, true)], None), []);
        // It may be either of the two, or the file of another image.
        assert_eq!(found(&[a, (11, x, true), (12, y, true)], None), []);
        assert_eq!(found(&[(11, x, true), a], None), []);
        for target in ["/var/tmp/vl.QV02Y3", "/t/vl.QV02Y34 (deleted)", "/t/al.QV02Y3 (deleted)"] {
            assert_eq!(found(&[a, (11, target, true)], None), [], "{target}");
        }
    }

    #[test]
    fn disks_with_one_image_have_their_files_in_the_order_of_the_disks() {
        let [x, y] = ["/var/tmp/vl.QV02Y3 (deleted)", "/tmp/vl.40Z4Y3 (deleted)"];
        let (a, b, x, y) = ((1, "/a", false), (2, "/b", false), (11, x, true), (12, y, true));
        let found = |images: &[&str], files: &[_]| found_of(images, files, None);
        assert_eq!(found(&["/a", "/a"], &[a, x, a, y]), [(0, 11), (1, 12)]);
        assert_eq!(found(&["/a", "/b", "/a"], &[a, x, b, a, y]), [(0, 11), (2, 12)]);
        // One of the two has none, or is a node that was opened before.
        assert_eq!(found(&["/a", "/a"], &[a, a, x]), []);
        assert_eq!(found(&["/a", "/a"], &[a, x, a]), []);
        assert_eq!(found(&["/a", "/a"], &[a, x]), []);
        assert_eq!(found(&["/a", "/a"], &[a, x, a, a, y]), []);
        assert_eq!(found(&["/a", "/a"], &[a, x, y, a]), []);
    }

    #[test]
    fn a_temporary_file_stays_its_disks() {
        let x = "/var/tmp/vl.QV02Y3 (deleted)";
        let path = path_of_target(x).to_owned();
        let mut of = disk("/a", Some(Location::Local("/a".to_owned())), "raw", false);
        of.others.push(path.clone());
        let mut vm = VmProcess::default();
        vm.devices.disks.push(of);
        vm.paths.insert(path, PathAnswer::Open(identity(11)));
        assert_eq!(found(&[(11, x, true), (1, "/a", false)], Some(&vm)), [(0, 11)]);
        assert_eq!(found(&[(12, x, true), (1, "/a", false)], Some(&vm)), [], "another file");
    }
}

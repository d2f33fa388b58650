//! What the descriptors of a process refer to, by the targets of their links. A process can have half a million of them, each
//! with a path of 4 KiB, so that what is kept and what is looked at has bounds.

use std::{
    collections::{BTreeMap, HashSet},
    io,
    ops::ControlFlow,
    rc::Rc,
};

use super::process::Process;

/// Most descriptors of a process that are looked at, those with the lowest numbers. A VMM with a thousand vCPUs, and a
/// thousand queues of disks and interfaces, has some ten thousand.
const MAX_DESCRIPTORS: usize = 1 << 16;

/// Most descriptors that are looked at of a process that is a VM only if it has one of KVM, while there is none among them. A
/// VMM creates its VM before it opens most of the rest.
const MAX_WITHOUT_KVM: usize = 1 << 14;

/// Most different paths of files, and bytes in them. Those of each VM stay in memory.
const MAX_PATHS: usize = 8192;
const MAX_PATH_BYTES: usize = 1 << 20;

/// A process's descriptors, by what they refer to.
#[derive(Debug, Default)]
pub(super) struct Descriptors {
    /// Descriptors of KVM VMs.
    pub(super) vms: Vec<u32>,
    /// vCPU id by descriptor.
    pub(super) vcpus: BTreeMap<u32, u32>,
    /// Descriptors and paths of files.
    pub(super) files: Vec<(u32, Rc<str>)>,
    pub(super) has_io_uring: bool,
    /// Some were closed meanwhile: what they referred to may be open at others.
    pub(super) is_outdated: bool,
    looked_at: usize,
    paths: HashSet<Rc<str>>,
    path_bytes: usize,
}

impl Descriptors {
    /// `needs_kvm`: without a descriptor of KVM, the others do not matter.
    ///
    /// # Errors
    ///
    /// Those of reading procfs, but for descriptors that are closed meanwhile.
    pub(super) fn of(process: &Process, needs_kvm: bool) -> io::Result<Self> {
        let mut found = Self::default();
        let are_closed =
            process.visit_descriptors(|fd, target| found.see(fd, target, needs_kvm))?;
        found.is_outdated = are_closed;
        Ok(found)
    }

    /// Takes in a descriptor. Breaks after the last one that is looked at.
    fn see(&mut self, fd: u32, target: &str, needs_kvm: bool) -> ControlFlow<()> {
        if target == "anon_inode:kvm-vm" {
            self.vms.push(fd);
        } else if let Some(id) = target.strip_prefix("anon_inode:kvm-vcpu:")
            && let Ok(id) = id.parse()
        {
            self.vcpus.insert(fd, id);
        } else if target == "anon_inode:[io_uring]" {
            self.has_io_uring = true;
        } else if target.starts_with('/')
            && let Some(path) = self.path(target)
        {
            self.files.push((fd, path));
        }
        self.looked_at += 1;
        let most = if needs_kvm && !self.has_kvm() { MAX_WITHOUT_KVM } else { MAX_DESCRIPTORS };
        if self.looked_at < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    }

    /// The path, in memory once; `None` = there is no room for another one.
    fn path(&mut self, path: &str) -> Option<Rc<str>> {
        if let Some(known) = self.paths.get(path) {
            return Some(Rc::clone(known));
        }
        let bytes = self.path_bytes + path.len();
        if self.paths.len() >= MAX_PATHS || bytes > MAX_PATH_BYTES {
            return None;
        }
        self.path_bytes = bytes;
        let path: Rc<str> = path.into();
        self.paths.insert(Rc::clone(&path));
        Some(path)
    }

    pub(super) const fn has_kvm(&self) -> bool {
        !self.vms.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found of a process with half a million descriptors.
    fn found(needs_kvm: bool, target: impl Fn(u32) -> String) -> Descriptors {
        let mut found = Descriptors::default();
        let mut numbers = 0..1 << 19;
        let _ = numbers.try_for_each(|fd| found.see(fd, &target(fd), needs_kvm));
        found
    }

    #[test]
    fn half_a_million_descriptors_of_one_file_are_one_path() {
        let path = format!("/{}", "x".repeat(4000));
        let it = found(false, |_| path.clone());
        assert_eq!((it.files.len(), it.paths.len()), (MAX_DESCRIPTORS, 1));
        assert_eq!(it.path_bytes, path.len());
    }

    #[test]
    fn long_paths_have_a_bound_in_bytes_and_short_ones_in_number() {
        let long = found(false, |fd| format!("/{fd}{}", "x".repeat(4000)));
        assert!(long.path_bytes <= MAX_PATH_BYTES && long.files.len() > 200);
        assert!(found(false, |fd| format!("/{fd}")).files.len() == MAX_PATHS);
    }

    #[test]
    fn a_process_without_a_vm_of_kvm_is_left_early() {
        assert_eq!(found(true, |_| "socket:[1]".to_owned()).looked_at, MAX_WITHOUT_KVM);
        let late = |at: u32| {
            let target = move |fd| if fd == at { "anon_inode:kvm-vm" } else { "/f" }.to_owned();
            found(true, target)
        };
        let it = late(10_000);
        assert_eq!((it.vms, it.looked_at), (vec![10_000], MAX_DESCRIPTORS));
        assert!(!late(20_000).has_kvm());
    }

    #[test]
    fn what_a_descriptor_refers_to_is_in_its_name() {
        let names = ["anon_inode:kvm-vm", "anon_inode:kvm-vcpu:3", "anon_inode:[io_uring]", "/a"];
        let name = |fd| names.get(fd as usize).map_or_else(String::new, |name| (*name).to_owned());
        let it = found(true, name);
        assert_eq!((it.vms, it.vcpus), (vec![0], BTreeMap::from([(1, 3)])));
        assert!(it.has_io_uring && it.files == [(3, "/a".into())]);
    }
}

//! The pins, by which maps and links outlive the agent.
//!
//! `PIN_DIR/v1/TID_SLOT …` are the maps, `PIN_DIR/v1/link_sched_switch …` the links; 1 is the number of the layout.

use std::{
    ffi::OsStr,
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError, MapType},
    programs::links::{FdLink, PinnedLink},
};
use kvmeter_common::{
    DEVICE_BUCKETS, DEVICE_USERS, EVENT_RING_LEN, FILTER_LEN, ImageRecord, InFlight, LAYOUT,
    MAX_IN_FLIGHT, Meta, SLOTS_PER_ELEMENT, ThreadRecord, VmRecord, names,
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, statfs},
    io::Errno,
};

use super::{ProbeError, Sizes, moved::Moved, pin_owners::make, with_causes};

/// `BPF_FS_MAGIC` of the kernel's magic.h.
pub(crate) const BPF_FS_MAGIC: u64 = 0xcafe_4a11;
/// `BPF_F_MMAPABLE` of the kernel's bpf.h.
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// Names of the pinned maps.
pub(super) const MAPS: [&str; 9] = [
    names::TID_SLOT,
    names::THREAD,
    names::VM,
    names::META,
    names::IMAGE,
    names::DEVICE,
    names::INFLIGHT,
    names::INFLIGHT_FILTER,
    names::EVENTS,
];

/// Words of [`Meta`], which begins with layout and fingerprint.
pub(super) const META_WORDS: usize = size_of::<Meta>() / 8;

/// The directory with the pins of this layout.
#[derive(Debug)]
pub(super) struct Pins {
    dir: PathBuf,
    /// The directory with the pins of all layouts, locked: one agent at a time counts with them. The kernel unlocks it when
    /// the agent ends in any way.
    _lock: OwnedFd,
}

/// A complete set of maps of this layout.
#[derive(Debug)]
pub(super) struct FoundMaps {
    pub(super) tid_slot: MapData,
    pub(super) threads: MapData,
    pub(super) vms: MapData,
    pub(super) meta: MapData,
    pub(super) images: MapData,
    pub(super) devices: MapData,
    pub(super) events: MapData,
    /// [`Meta::programs`].
    pub(super) programs: u64,
    /// Whether the tables of records have the sizes that are wanted.
    pub(super) have_sizes: bool,
}

impl Pins {
    /// Creates the directory, for the agent's user only, and locks that of all layouts.
    pub(super) fn open(pin_dir: &Path) -> Result<Self, ProbeError> {
        let dir = layout_dir(pin_dir);
        make(&dir, pin_dir, &[])?;
        Ok(Self { dir, _lock: lock(pin_dir)? })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn link(&self, hook: &str) -> PathBuf {
        self.dir.join(format!("link_{hook}"))
    }

    /// Whether there is a pin of this hook. One that cannot be looked at counts as there.
    pub(super) fn is_there(&self, hook: &str) -> bool {
        let found = fs::symlink_metadata(self.link(hook));
        !found.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    pub(super) fn has_link(&self, hook: &str) -> bool {
        PinnedLink::from_pin(self.link(hook)).is_ok()
    }

    /// Removes a link, if there is one: detaches its program.
    pub(super) fn remove_link(&self, hook: &str) -> Result<(), ProbeError> {
        let path = self.link(hook);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ProbeError::pin(path, error))
            }
            _ => Ok(()),
        }
    }

    /// Pins a new link in the place of the old one, which is detached by that.
    pub(super) fn replace_link(&self, hook: &str, link: FdLink) -> Result<(), ProbeError> {
        let path = self.link(hook);
        // No dot: bpffs reserves names with dots.
        let fresh = self.dir.join(format!("new_{hook}"));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ProbeError::pin(fresh, error));
            }
            _ => {}
        }
        link.pin(&fresh).map_err(|source| ProbeError::pin(&fresh, source))?;
        fs::rename(&fresh, &path).map_err(|source| ProbeError::pin(&path, source))
    }

    /// The pinned maps, if the set is complete and of this version's shape and layout. Otherwise clears the directory and
    /// returns `None`. The tables of records may have other sizes. A map of thread ids that is too small for this `pid_max` is not
    /// pinned any more, and the programs are to be replaced.
    pub(super) fn find_maps(
        &self,
        tid_elements: u32,
        sizes: Sizes,
    ) -> Result<Option<FoundMaps>, ProbeError> {
        if MAPS.iter().any(|name| !self.map(name).exists()) {
            return self.clear().map(|()| None);
        }
        let open = |name| {
            let path = self.map(name);
            MapData::from_pin(&path).map_err(|source| ProbeError::pin(path, source))
        };
        let found = FoundMaps {
            tid_slot: open(names::TID_SLOT)?,
            threads: open(names::THREAD)?,
            vms: open(names::VM)?,
            meta: open(names::META)?,
            images: open(names::IMAGE)?,
            devices: open(names::DEVICE)?,
            events: open(names::EVENTS)?,
            programs: 0,
            have_sizes: false,
        };
        let meta = open(names::META)?;
        let found_elements = found.tid_slot.info().map_or(0, |info| info.max_entries());
        let fits = [
            is_array(&found.tid_slot, SLOTS_PER_ELEMENT * 2),
            is_array(&found.threads, size_of::<ThreadRecord>()),
            is_array(&found.vms, size_of::<VmRecord>()),
            is_array(&found.meta, size_of::<Meta>()) && len(&found.meta) == Some(1),
            is_array(&found.images, size_of::<ImageRecord>()),
            is_array(&found.devices, 8 * DEVICE_USERS)
                && len(&found.devices) == Some(DEVICE_BUCKETS),
            open(names::INFLIGHT)?.info().is_ok_and(|info| {
                info.map_type().is_ok_and(|kind| kind == MapType::Hash)
                    && (info.key_size(), info.max_entries()) == (8, MAX_IN_FLIGHT)
                    && info.value_size() as usize == size_of::<InFlight>()
            }),
            open(names::INFLIGHT_FILTER)?.info().is_ok_and(|info| {
                info.map_type().is_ok_and(|kind| kind == MapType::Array)
                    && (info.value_size(), info.max_entries()) == (8, FILTER_LEN)
            }),
            found.events.info().is_ok_and(|info| {
                info.map_type().is_ok_and(|kind| kind == MapType::RingBuf)
                    && info.max_entries() == EVENT_RING_LEN
            }),
        ];
        if fits.contains(&false) {
            tracing::warn!(
                dir = %self.dir.display(),
                "The pinned maps do not have this version's shape; counting starts from zero"
            );
            return self.clear().map(|()| None);
        }
        let [layout, programs, ..] = Array::<_, [u64; META_WORDS]>::try_from(Map::Array(meta))
            .and_then(|array| array.get(&0, 0))
            .map_err(|source| ProbeError::pin(self.map(names::META), source))?;
        if layout != u64::from(LAYOUT) {
            return self.clear().map(|()| None);
        }
        let have_sizes = len(&found.vms) == Some(sizes.vms)
            && len(&found.threads) == Some(sizes.threads)
            && len(&found.images) == Some(sizes.images);
        let found = FoundMaps { programs, have_sizes, ..found };
        if !have_sizes || found_elements >= tid_elements {
            return Ok(Some(found));
        }
        // pid_max has grown. Only the map of thread ids is made again, and with it the programs.
        let path = self.map(names::TID_SLOT);
        fs::remove_file(&path).map_err(|source| ProbeError::pin(path, source))?;
        Ok(Some(FoundMaps { programs: 0, ..found }))
    }

    /// Takes the records out of tables of other sizes, and removes the pins of the maps. The programs go on counting in them
    /// until their links are replaced. `None`: the records cannot be read.
    pub(super) fn take_apart(
        &self,
        found: FoundMaps,
        sizes: Sizes,
    ) -> Result<Option<Moved>, ProbeError> {
        let moved = Moved::read(found.vms, found.threads, found.images, sizes)
            .inspect_err(|error| {
                let error = with_causes(error);
                tracing::warn!("Counting starts from zero in tables of other sizes: {error}");
            })
            .ok();
        for name in MAPS {
            let path = self.map(name);
            fs::remove_file(&path).map_err(|source| ProbeError::pin(path, source))?;
        }
        Ok(moved)
    }

    /// Detaches leftovers of other versions: pins of other layouts, and links at hooks that this version does not have.
    pub(super) fn remove_others(&self, is_hook: impl Fn(&str) -> bool) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::pin(&self.dir, source);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let hook = name.to_str().and_then(|name| name.strip_prefix("link_"));
            if hook.is_some_and(|hook| !is_hook(hook)) {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        let Some(all) = self.dir.parent() else { return Ok(()) };
        for entry in fs::read_dir(all).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if is_layout(&entry.file_name()) && entry.path() != self.dir {
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    fn clear(&self) -> Result<(), ProbeError> {
        let failed = |source| ProbeError::pin(&self.dir, source);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }
}

fn lock(pin_dir: &Path) -> Result<OwnedFd, ProbeError> {
    let failed = |source: Errno| ProbeError::pin(pin_dir, source);
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let held = rustix::fs::open(pin_dir, how, Mode::empty()).map_err(failed)?;
    match flock(&held, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(held),
        Err(Errno::WOULDBLOCK) => Err(ProbeError::InUse { dir: pin_dir.to_owned() }),
        Err(error) => Err(failed(error)),
    }
}

/// Whether the program of a hook that was attached still is: without its pin it is detached. A pin that cannot be looked
/// at counts as there.
pub(crate) fn is_attached(pin_dir: &Path, hook: &str) -> bool {
    let link = layout_dir(pin_dir).join(format!("link_{hook}"));
    !fs::symlink_metadata(link).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

fn len(map: &MapData) -> Option<usize> {
    map.info().ok().map(|info| info.max_entries() as usize)
}

fn is_array(map: &MapData, value_len: usize) -> bool {
    map.info().is_ok_and(|info| {
        info.map_type().is_ok_and(|kind| kind == MapType::Array)
            && info.value_size() as usize == value_len
            && info.map_flags() & BPF_F_MMAPABLE != 0
    })
}

/// One more than the largest thread id (`kernel.pid_max`).
///
/// # Errors
///
/// When /proc/sys/kernel/pid_max cannot be read.
pub(crate) fn pid_max() -> io::Result<u32> {
    let text = fs::read_to_string("/proc/sys/kernel/pid_max")?;
    text.trim().parse().map_err(io::Error::other)
}

/// Number of elements of `TID_SLOT`, so that every thread id of this kernel has an entry.
pub(super) fn tid_elements() -> Result<u32, ProbeError> {
    let pid_max = pid_max().map_err(ProbeError::PidMax)?;
    Ok(pid_max.div_ceil(u32::try_from(SLOTS_PER_ELEMENT).unwrap_or(1)))
}

/// Removes the pins of every layout below `pin_dir`, and the directory if it is empty then. Returns whether there were any
/// pins.
pub(super) fn remove_all(pin_dir: &Path) -> Result<bool, ProbeError> {
    let failed = |source| ProbeError::pin(pin_dir, source);
    let entries = match fs::read_dir(pin_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries.map_err(failed)?,
    };
    if !is_bpffs(pin_dir) {
        return Err(ProbeError::NotBpffs { dir: pin_dir.to_owned() });
    }
    let mut found = false;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if is_layout(&entry.file_name()) {
            // A running agent still maps these records. Clearing the layout word stops it from serving frozen counters.
            if entry.path() == layout_dir(pin_dir) {
                let _ = note_end(&entry.path().join(names::META));
            }
            fs::remove_dir_all(entry.path()).map_err(failed)?;
            found = true;
        }
    }
    match fs::remove_dir(pin_dir) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(failed(error)),
        _ => Ok(found),
    }
}

/// Clears the layout word: nothing is counted in these records from now on. Fails if the map has another shape.
fn note_end(meta: &Path) -> Result<(), MapError> {
    let meta = Map::Array(MapData::from_pin(meta)?);
    let mut array = Array::<_, [u64; META_WORDS]>::try_from(meta)?;
    let mut words = array.get(&0, 0)?;
    words[0] = 0;
    array.set(0, words, 0)
}

/// The directory with the pins of this layout.
pub(super) fn layout_dir(pin_dir: &Path) -> PathBuf {
    pin_dir.join(format!("v{LAYOUT}"))
}

/// Whether this is the name of a layout's directory.
fn is_layout(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix('v'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
}

pub(super) fn is_bpffs(dir: &Path) -> bool {
    statfs(dir).is_ok_and(|fs| u64::try_from(fs.f_type).is_ok_and(|magic| magic == BPF_FS_MAGIC))
}

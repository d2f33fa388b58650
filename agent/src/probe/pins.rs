//! The pins, by which maps and links outlive the agent.
//!
//! `PIN_DIR/v1/TID_SLOT …` are the maps, `PIN_DIR/v1/link_sched_switch …` the links; 1 is the number of the layout.

use std::{
    ffi::OsStr,
    fs, io,
    mem::offset_of,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError, MapType},
    programs::links::{FdLink, PinnedLink},
};
use kvmeter_common::{
    DEVICE_BUCKETS, DEVICE_USERS, EVENT_RING_LEN, FILTER_LEN, ImageRecord, InFlight, LAYOUT,
    MAX_IN_FLIGHT, Meta, Owner, SLOTS_PER_ELEMENT, ThreadRecord, VmRecord, names,
};
use rustix::{
    fs::{FlockOperation, Mode, OFlags, flock, statfs},
    io::Errno,
};

use super::{Method, ProbeError, Sizes, ftrace, owners::owners, pin_owners::make};

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

/// [`Meta`] in words: it begins with layout and fingerprint, and ends with the secret.
type MetaArray = Array<MapData, [u64; size_of::<Meta>() / 8]>;

/// The word with [`Meta::secret`].
const SECRET: usize = offset_of!(Meta, secret) / 8;
const _: () = assert!(SECRET + 1 == size_of::<Meta>() / 8);

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
    /// `None`: it is missing, or lacks thread ids of this `pid_max`.
    pub(super) tid_slot: Option<MapData>,
    pub(super) threads: MapData,
    pub(super) vms: MapData,
    pub(super) meta: MapData,
    pub(super) images: MapData,
    pub(super) devices: MapData,
    pub(super) events: MapData,
    /// [`Meta::programs`].
    pub(super) programs: u64,
    /// [`Meta::secret`].
    pub(super) secret: u64,
    pub(super) sizes: Sizes,
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
        remove(&self.link(hook))
    }

    /// Pins a new link in the place of the old one, which is detached by that.
    pub(super) fn replace_link(&self, hook: &str, link: FdLink) -> Result<(), ProbeError> {
        let path = self.link(hook);
        let fresh = self.fresh(hook);
        remove(&fresh)?;
        link.pin(&fresh).map_err(|source| ProbeError::pin(&fresh, source))?;
        fs::rename(&fresh, &path).map_err(|source| ProbeError::pin(&path, source))
    }

    /// Name of a pin that is to take the place of `name`. No dot: bpffs reserves names with dots.
    fn fresh(&self, name: &str) -> PathBuf {
        self.dir.join(format!("new_{name}"))
    }

    /// Path for a map that is to take the place of a pinned one, with nothing there.
    pub(super) fn fresh_map(&self, name: &str) -> Result<PathBuf, ProbeError> {
        let fresh = self.fresh(name);
        remove(&fresh)?;
        Ok(fresh)
    }

    /// Puts the map at [`fresh_map`](Self::fresh_map) in the place of the pinned one.
    pub(super) fn replace_map(&self, name: &str) -> Result<(), ProbeError> {
        let path = self.map(name);
        fs::rename(self.fresh(name), &path).map_err(|source| ProbeError::pin(path, source))
    }

    /// Removes what a start that has failed has pinned: the whole set if it was a new one, whose programs no agent would adopt.
    pub(super) fn give_up(&self, was_adopted: bool) -> Result<(), ProbeError> {
        if was_adopted { remove(&self.fresh(names::TID_SLOT)) } else { self.clear() }
    }

    pub(super) fn open_map(&self, name: &str) -> Result<MapData, ProbeError> {
        let path = self.map(name);
        MapData::from_pin(&path).map_err(|source| ProbeError::pin(path, source))
    }

    /// The pinned maps, if the set is complete and of this version's shape and layout; no pin is changed. The tables of records
    /// may have any valid sizes. The map of thread ids may be missing, or too small for this `pid_max`: the records say what
    /// belongs in it.
    pub(super) fn find_maps(&self, tid_elements: u32) -> Result<Option<FoundMaps>, ProbeError> {
        let is_there = |name: &str| self.map(name).exists();
        if MAPS.iter().any(|name| *name != names::TID_SLOT && !is_there(name)) {
            return Ok(None);
        }
        let tid_slot = match is_there(names::TID_SLOT) {
            true => Some(self.open_map(names::TID_SLOT)?),
            false => None,
        };
        let has_all_ids = |map: &MapData| {
            is_array(map, SLOTS_PER_ELEMENT * 2)
                && len(map).is_some_and(|elements| elements >= tid_elements as usize)
        };
        let [threads, vms, images] = [names::THREAD, names::VM, names::IMAGE];
        let found = FoundMaps {
            tid_slot: tid_slot.filter(has_all_ids),
            threads: self.open_map(threads)?,
            vms: self.open_map(vms)?,
            meta: self.open_map(names::META)?,
            images: self.open_map(images)?,
            devices: self.open_map(names::DEVICE)?,
            events: self.open_map(names::EVENTS)?,
            programs: 0,
            secret: 0,
            sizes: Sizes::default(),
        };
        let [threads, vms, images] =
            [&found.threads, &found.vms, &found.images].map(|map| len(map).unwrap_or(0));
        let sizes = Sizes { vms, threads, images };
        let fits = [
            sizes.are_valid(),
            is_array(&found.threads, size_of::<ThreadRecord>()),
            is_array(&found.vms, size_of::<VmRecord>()),
            is_array(&found.meta, size_of::<Meta>()) && len(&found.meta) == Some(1),
            is_array(&found.images, size_of::<ImageRecord>()),
            is_array(&found.devices, 8 * DEVICE_USERS)
                && len(&found.devices) == Some(DEVICE_BUCKETS),
            self.open_map(names::INFLIGHT)?.info().is_ok_and(|info| {
                info.map_type().is_ok_and(|kind| kind == MapType::Hash)
                    && (info.key_size(), info.max_entries()) == (8, MAX_IN_FLIGHT)
                    && info.value_size() as usize == size_of::<InFlight>()
            }),
            self.open_map(names::INFLIGHT_FILTER)?.info().is_ok_and(|info| {
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
            return Ok(None);
        }
        let [layout, programs, .., secret] =
            MetaArray::try_from(Map::Array(self.open_map(names::META)?))
                .and_then(|meta| meta.get(&0, 0))
                .map_err(|source| ProbeError::pin(self.map(names::META), source))?;
        let is_complete = layout == u64::from(LAYOUT);
        Ok(is_complete.then_some(FoundMaps { programs, secret, sizes, ..found }))
    }

    /// Whether no pin can be removed for now: ftrace is switched off, and a program at a function is attached.
    pub(super) fn must_stay(&self) -> bool {
        must_stay(&self.dir)
    }

    /// The threads that have records in the pinned tables, with the slots of the records.
    pub(super) fn owners(&self) -> Result<Vec<(u16, Owner)>, ProbeError> {
        owners(self.open_map(names::VM)?, self.open_map(names::THREAD)?)
    }

    /// Notes in the record about the maps that the set is complete, and the fingerprint of the programs behind the links; 0: the
    /// next agent is to replace them.
    pub(super) fn note_programs(&self, programs: u64) -> Result<(), ProbeError> {
        note_programs(self.open_map(names::META)?, programs)
    }

    /// Notes the secret of a new set, before anything is counted in it.
    pub(super) fn note_secret(&self, secret: u64) -> Result<(), ProbeError> {
        let meta = self.open_map(names::META)?;
        let mut meta = MetaArray::try_from(Map::Array(meta)).map_err(ProbeError::load)?;
        let mut words = meta.get(&0, 0).map_err(ProbeError::load)?;
        words[SECRET] = secret;
        meta.set(0, words, 0).map_err(ProbeError::load)
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
                refuse_without_ftrace(&entry.path())?;
                fs::remove_dir_all(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Removes all pins of this layout: ends the counting in them.
    pub(super) fn clear(&self) -> Result<(), ProbeError> {
        refuse_without_ftrace(&self.dir)?;
        let failed = |source| ProbeError::pin(&self.dir, source);
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            fs::remove_file(entry.map_err(failed)?.path()).map_err(failed)?;
        }
        Ok(())
    }
}

/// Fails if [`must_stay`].
fn refuse_without_ftrace(dir: &Path) -> Result<(), ProbeError> {
    if must_stay(dir) { Err(ProbeError::FtraceOff { dir: dir.to_owned() }) } else { Ok(()) }
}

/// Whether ftrace is switched off and a link to a program at a function is pinned in `dir`: to remove the pin detaches the program.
fn must_stay(dir: &Path) -> bool {
    let at_functions = Method::ALL.into_iter().filter(|method| method.is_optional());
    let mut hooks = at_functions.flat_map(Method::hooks);
    ftrace::is_off() && hooks.any(|hook| dir.join(format!("link_{}", hook.name)).exists())
}

/// Removes a pin, if there is one.
fn remove(path: &Path) -> Result<(), ProbeError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ProbeError::pin(path, error)),
        _ => Ok(()),
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
            refuse_without_ftrace(&entry.path())?;
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
    let mut meta = MetaArray::try_from(Map::Array(MapData::from_pin(meta)?))?;
    let mut words = meta.get(&0, 0)?;
    words[0] = 0;
    meta.set(0, words, 0)
}

/// Writes layout and fingerprint into the record about the maps.
pub(super) fn note_programs(meta: MapData, programs: u64) -> Result<(), ProbeError> {
    let mut meta = MetaArray::try_from(Map::Array(meta)).map_err(ProbeError::load)?;
    let mut words = meta.get(&0, 0).map_err(ProbeError::load)?;
    (words[0], words[1]) = (u64::from(LAYOUT), programs);
    meta.set(0, words, 0).map_err(ProbeError::load)
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

//! Loads, attaches, pins and adopts the BPF programs. Knows kernels, not VMs.
//!
//! Maps and links are pinned, so counting goes on while no agent runs. A later agent adopts the maps if their layout and
//! shape are its own. If the programs are its own, too, it keeps the links; else it replaces each one. For a moment both
//! links are live: the programs tolerate that an event is seen twice.

pub mod btf;
mod error;
mod events;
mod hook;
mod image_hooks;
mod moved;
mod object;
mod offsets;
mod pin_owners;
mod pins;
mod sizes;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use aya::{
    EbpfLoader,
    maps::{Array, Map, MapData, RingBuf},
};
use kvmeter_common::{LAYOUT, image::buckets, names};

pub use error::ProbeError;
pub(crate) use error::with_causes;
pub use events::Events;
pub use hook::{Hook, HookState, SCHED_HOOKS};
pub use image_hooks::{ImageHooks, Method};
pub(crate) use moved::LateCounts;
use moved::Moved;
pub use offsets::Offsets;
pub(crate) use pin_owners::check_owners;
use pins::Pins;
pub(crate) use pins::{BPF_FS_MAGIC, is_attached, pid_max};
pub use sizes::Sizes;

/// File with the kernel's own BTF.
pub const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// The attached programs and their maps.
#[expect(missing_debug_implementations, reason = "aya's ring has none")]
pub struct Probe {
    /// Thread id → slot.
    pub tid_slot: MapData,
    /// Thread records.
    pub threads: MapData,
    /// VM records.
    pub vms: MapData,
    /// The record about the maps.
    pub meta: MapData,
    /// The events of the programs.
    pub events: Events,
    /// The image records.
    pub images: MapData,
    /// The VMs of each block device.
    pub devices: MapData,
    /// The hooks for disk I/O.
    pub image_hooks: ImageHooks,
    /// State of each hook for CPU time.
    pub hooks: Vec<HookState>,
    /// Whether the maps were adopted, with what was counted while no agent ran.
    pub adopted: bool,
    /// Sizes of the tables.
    pub sizes: Sizes,
    /// What was counted in tables of other sizes after the records were moved, to be added to the image records.
    pub(crate) late: Vec<LateCounts>,
    /// Whether the records came from tables of other sizes.
    pub(crate) has_moved: bool,
}

impl Probe {
    /// Adopts the programs and maps pinned under `pin_dir`, or loads and pins them.
    ///
    /// # Errors
    ///
    /// [`ProbeError`], with what to do about it. Nothing is counted then; earlier pins stay.
    pub fn start(pin_dir: &Path, kernel_btf: &Path, sizes: Sizes) -> Result<Self, ProbeError> {
        let object = object::elf()?;
        let offsets = Offsets::of_kernel(kernel_btf)?;
        let fingerprint = fingerprint(object, &offsets, sizes);
        let pins = Pins::open(pin_dir)?;
        let tid_elements = pins::tid_elements()?;
        let mut found = pins.find_maps(tid_elements, sizes)?;
        let moved = match found.take_if(|maps| !maps.have_sizes) {
            Some(maps) => pins.take_apart(maps, sizes)?,
            None => None,
        };
        let adopted = found.is_some() || moved.is_some();
        let is_same = found.is_some_and(|maps| maps.programs == fingerprint)
            && SCHED_HOOKS.iter().all(|hook| pins.has_link(hook.name));

        let mut loader = EbpfLoader::new();
        offsets.set_globals(&mut loader);
        let image_buckets = buckets(sizes.images);
        set_sizes(&mut loader, sizes, &image_buckets);
        loader.map_max_entries(names::TID_SLOT, tid_elements);
        for name in pins::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        let object = offsets.relocate(object).map_err(ProbeError::load)?;
        let mut ebpf = loader.load(&object).map_err(|error| ProbeError::maps(error, sizes))?;
        let btf = parse_for_loader(kernel_btf)?;
        if let Some(moved) = &moved {
            moved.write(&mut ebpf)?;
        }
        let hooks = if is_same {
            SCHED_HOOKS.map(|hook| HookState { hook, method: None, failure: None }).to_vec()
        } else {
            attach_all(&mut ebpf, &btf, &pins, &offsets, fingerprint)?
        };
        let for_disks = || Method::ALL.into_iter().flat_map(Method::hooks);
        let is_hook =
            |name: &str| SCHED_HOOKS.iter().chain(for_disks()).any(|hook| hook.name == name);
        if let Err(error) = pins.remove_others(is_hook) {
            tracing::warn!("pins of another version stay: {}", with_causes(&error));
        }
        let maps = pins
            .find_maps(tid_elements, sizes)?
            .filter(|maps| maps.have_sizes)
            .ok_or(ProbeError::PinsChanged { dir: pins.dir().to_owned() })?;
        let image_hooks = ImageHooks::load(ebpf, &btf, pins, &offsets, is_same);
        let mut probe = maps.into_probe(image_hooks, hooks, adopted, sizes)?;
        probe.has_moved = moved.is_some();
        probe.late = moved.as_ref().map_or_else(Vec::new, Moved::late);
        Ok(probe)
    }

    /// Makes `pin_dir`, and gives it and the pins in it to the owner of `example`, which must exist. To be called as root.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NotBpffs`], [`ProbeError::NotOurs`] or [`ProbeError::Pin`]
    pub fn prepare(pin_dir: &Path, example: &Path) -> Result<u32, ProbeError> {
        let owner =
            std::fs::metadata(example).map_err(|source| ProbeError::pin(example, source))?;
        pin_owners::give(pin_dir, owner.uid(), owner.gid())?;
        Ok(owner.uid())
    }

    /// Ends the counting: removes the pins of every layout below `pin_dir`. Returns whether there was any.
    ///
    /// # Errors
    ///
    /// [`ProbeError::Pin`] when a pin cannot be removed.
    pub fn detach(pin_dir: &Path) -> Result<bool, ProbeError> {
        pins::remove_all(pin_dir)
    }
}

/// Loads the program of each hook without attaching it, and returns which of them this kernel accepts.
///
/// # Errors
///
/// [`ProbeError`] when not even the maps can be created.
pub fn try_hooks(kernel_btf: &Path, sizes: Sizes) -> Result<Vec<HookState>, ProbeError> {
    let object = object::elf()?;
    let offsets = Offsets::of_kernel(kernel_btf)?;
    let mut loader = EbpfLoader::new();
    offsets.set_globals(&mut loader);
    let image_buckets = buckets(sizes.images);
    set_sizes(&mut loader, sizes, &image_buckets);
    let object = offsets.relocate(object).map_err(ProbeError::load)?;
    let mut ebpf = loader.load(&object).map_err(|error| ProbeError::maps(error, sizes))?;
    let btf = parse_for_loader(kernel_btf)?;
    let of = |method: Method| method.hooks().iter().map(move |hook| (*hook, Some(method)));
    let for_disks = Method::ALL.into_iter().flat_map(of);
    let hooks = SCHED_HOOKS.into_iter().map(|hook| (hook, None)).chain(for_disks);
    let mut attempt =
        |hook: Hook| hook.load(&mut ebpf, &btf, &offsets).err().map(|error| with_causes(&error));
    Ok(hooks
        .map(|(hook, method)| {
            let missing_field = method.and_then(|_| offsets.missing_field());
            let failure = missing_field.map(str::to_owned).or_else(|| attempt(hook));
            HookState { hook, method, failure }
        })
        .collect())
}

fn set_sizes<'a>(loader: &mut EbpfLoader<'a>, sizes: Sizes, image_buckets: &'a u64) {
    for (name, _, records) in sizes.maps() {
        loader.map_max_entries(name, u32::try_from(records).unwrap_or(u32::MAX));
    }
    loader.override_global("IMAGE_BUCKETS", image_buckets, true);
}

/// The kernel's BTF for the loader, which has a parser of its own.
fn parse_for_loader(path: &Path) -> Result<aya::Btf, ProbeError> {
    aya::Btf::parse_file(path, aya::Endianness::default())
        .map_err(|source| ProbeError::BtfTooNew { path: path.to_owned(), source: Box::new(source) })
}

/// Attaches the hooks for CPU time, and writes layout and fingerprint into the record about the maps.
fn attach_all(
    ebpf: &mut aya::Ebpf,
    btf: &aya::Btf,
    pins: &Pins,
    offsets: &Offsets,
    fingerprint: u64,
) -> Result<Vec<HookState>, ProbeError> {
    let mut hooks = Vec::with_capacity(SCHED_HOOKS.len());
    for hook in SCHED_HOOKS {
        let attached = hook.load(ebpf, btf, offsets).and_then(|()| hook.attach(ebpf, pins));
        let failure = match attached {
            Ok(()) => None,
            Err(error) if hook.required => return Err(error),
            Err(error) => Some(with_causes(&error)),
        };
        hooks.push(HookState { hook, method: None, failure });
    }
    // The map is borrowed, not taken: programs that are loaded later refer to its descriptor.
    if let Some(meta) = ebpf.map_mut(names::META) {
        let mut array =
            Array::<_, [u64; pins::META_WORDS]>::try_from(meta).map_err(ProbeError::load)?;
        let mut words = array.get(&0, 0).map_err(ProbeError::load)?;
        // If a hook failed, the next agent tries again.
        let complete = hooks.iter().all(|hook| hook.failure.is_none());
        (words[0], words[1]) = (u64::from(LAYOUT), if complete { fingerprint } else { 0 });
        array.set(0, words, 0).map_err(ProbeError::load)?;
    }
    Ok(hooks)
}

/// Fingerprint of the programs, and of the offsets and sizes with which they are loaded.
fn fingerprint(object: &[u8], offsets: &Offsets, sizes: Sizes) -> u64 {
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    offsets.hash(&mut hasher);
    sizes.hash(&mut hasher);
    // 0 means incomplete.
    hasher.finish().max(1)
}

impl pins::FoundMaps {
    fn into_probe(
        self,
        image_hooks: ImageHooks,
        hooks: Vec<HookState>,
        adopted: bool,
        sizes: Sizes,
    ) -> Result<Probe, ProbeError> {
        Ok(Probe {
            tid_slot: self.tid_slot,
            threads: self.threads,
            vms: self.vms,
            meta: self.meta,
            images: self.images,
            devices: self.devices,
            image_hooks,
            events: Events::new(
                RingBuf::try_from(Map::RingBuf(self.events)).map_err(ProbeError::load)?,
            ),
            hooks,
            adopted,
            sizes,
            late: Vec::new(),
            has_moved: false,
        })
    }
}

/// Whether this binary was built without BPF programs.
#[must_use]
pub fn is_stub() -> bool {
    object::elf().is_err()
}

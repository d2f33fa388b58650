//! Loads, attaches, pins and adopts the BPF programs. Knows kernels, not VMs.
//!
//! Maps and links are pinned, so counting goes on while no agent runs. A later agent adopts the maps if their layout and
//! shape are its own. If the programs are its own, too, it keeps the links; else it replaces each one. For a moment both
//! links are live: the programs tolerate that an event is seen twice.
//!
//! Records never move: tables keep the sizes with which they were made for as long as a VM is counted in them. Only the map of
//! thread ids is replaced, when `pid_max` has grown. The new one has all threads before a program uses it.

pub mod btf;
mod error;
mod events;
mod ftrace;
mod hook;
mod image_hooks;
mod object;
mod offsets;
mod owners;
mod pin_owners;
mod pins;
mod proof;
mod sizes;

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Map, MapData, RingBuf},
};
use kvmeter_common::{image::buckets, names};

pub use error::ProbeError;
pub(crate) use error::with_causes;
pub use events::Events;
pub use hook::{Hook, HookState, SCHED_HOOKS};
pub use image_hooks::{ImageHooks, Method};
pub use offsets::Offsets;
pub(crate) use pin_owners::check_owners;
use pins::Pins;
pub(crate) use pins::{BPF_FS_MAGIC, is_attached, pid_max};
pub use proof::TestError;
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
    /// Sizes of the tables. Tables that were adopted may have other ones than those configured.
    pub sizes: Sizes,
}

impl Probe {
    /// Adopts the programs and maps pinned under `pin_dir`, or loads and pins them. Tables in which a VM is counted keep their
    /// sizes; other tables are replaced if they do not have those of `configured`.
    ///
    /// # Errors
    ///
    /// [`ProbeError`], with what to do about it. A set of pins in which a VM is counted stays then, and its programs go on
    /// counting: a later start adopts it. Of another set nothing may be left.
    pub fn start(pin_dir: &Path, kernel_btf: &Path, configured: Sizes) -> Result<Self, ProbeError> {
        let elf = object::elf()?;
        let offsets = Offsets::of_kernel(kernel_btf)?;
        let btf = parse_for_loader(kernel_btf)?;
        let object = offsets.relocate(elf).map_err(ProbeError::load)?;
        let tid_elements = pins::tid_elements()?;
        let pins = Pins::open(pin_dir)?;
        let mut found = pins.find_maps(tid_elements)?;
        if let Some(maps) = &found
            && maps.sizes != configured
        {
            match pins.owners()?.is_empty() {
                false => warn_of_sizes(maps.sizes, configured),
                true if pins.must_stay() => warn_of_ftrace(maps.sizes, configured),
                true => {
                    tracing::info!(
                        "No VM is counted: the tables are replaced by new ones, for {configured}"
                    );
                    found = None;
                }
            }
        }
        let sizes = found.as_ref().map_or(configured, |maps| maps.sizes);
        let secret = found.as_ref().map_or_else(new_secret, |maps| Ok(maps.secret))?;
        let fingerprint = fingerprint(elf, &offsets, sizes);
        let set = Set {
            adopted: found.is_some(),
            lacks_ids: found.as_ref().is_some_and(|maps| maps.tid_slot.is_none()),
            has_programs: found.as_ref().is_some_and(|maps| maps.programs == fingerprint)
                && SCHED_HOOKS.iter().all(|hook| pins.has_link(hook.name)),
            sizes,
            secret,
            tid_elements,
        };
        drop(found);
        if !set.adopted {
            pins.clear()?;
        }
        let begun = set.load(&object, &offsets, &pins).and_then(|mut ebpf| {
            let hooks = set.attach(&mut ebpf, &btf, &offsets, &pins)?;
            Ok((ebpf, hooks))
        });
        let (ebpf, hooks) = begun.inspect_err(|_| {
            if let Err(error) = pins.give_up(set.adopted) {
                tracing::warn!("pins of a failed start stay: {}", with_causes(&error));
            }
        })?;
        let for_disks = || Method::ALL.into_iter().flat_map(Method::hooks);
        let is_hook =
            |name: &str| SCHED_HOOKS.iter().chain(for_disks()).any(|hook| hook.name == name);
        if let Err(error) = pins.remove_others(is_hook) {
            tracing::warn!("pins of another version stay: {}", with_causes(&error));
        }
        let changed = || ProbeError::PinsChanged { dir: pins.dir().to_owned() };
        let maps = pins.find_maps(tid_elements)?.filter(|maps| maps.sizes == sizes);
        let mut maps = maps.ok_or_else(changed)?;
        let tid_slot = maps.tid_slot.take().ok_or_else(changed)?;
        let meta = pins.open_map(names::META)?;
        let image_hooks = ImageHooks::load(ebpf, &btf, pins, &offsets, set.is_same());
        // Only now is no link of other programs left. If a hook failed, the next agent tries again.
        if !set.is_same() && hooks.iter().all(|hook| hook.failure.is_none()) {
            pins::note_programs(meta, fingerprint)?;
        }
        maps.into_probe(tid_slot, image_hooks, hooks, set.adopted)
    }

    /// Makes `pin_dir`, and gives it and the pins in it to the owner of `example`, which must exist. To be called as root.
    ///
    /// # Errors
    ///
    /// [`ProbeError::NoExample`], [`ProbeError::NotBpffs`], [`ProbeError::NotOurs`] or [`ProbeError::Pin`]
    pub fn prepare(pin_dir: &Path, example: &Path) -> Result<u32, ProbeError> {
        let owner = std::fs::metadata(example)
            .map_err(|source| ProbeError::NoExample { dir: example.to_owned(), source })?;
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

/// Says that the sizes of the configuration are not in use, and when they will be.
fn warn_of_sizes(in_use: Sizes, configured: Sizes) {
    tracing::warn!(
        "VMs are counted in tables for {in_use}, which keep their sizes; [limits] of the configuration has {configured}. These \
         sizes take effect when no VM runs at a start of the agent, after a reboot, or after `kvmeter detach`, after which the \
         disk counters of running VMs start from zero"
    );
}

/// Says the same of tables that are kept because ftrace is switched off.
fn warn_of_ftrace(in_use: Sizes, configured: Sizes) {
    tracing::warn!(
        "ftrace is switched off (kernel.ftrace_enabled = 0), and programs at functions cannot be detached until it is on again: \
         the tables for {in_use} stay; [limits] of the configuration has {configured}. These sizes take effect when ftrace is on, \
         and no VM runs, at a start of the agent"
    );
}

/// The pinned set with which a start begins.
struct Set {
    /// Whether its maps are adopted.
    adopted: bool,
    /// Whether its map of thread ids is to be made again.
    lacks_ids: bool,
    /// Whether its links are of the programs that this agent would load.
    has_programs: bool,
    sizes: Sizes,
    /// Secret of the hash of images.
    secret: u64,
    tid_elements: u32,
}

impl Set {
    /// Whether all links stay.
    const fn is_same(&self) -> bool {
        self.has_programs && !self.lacks_ids
    }

    /// Opens the pinned maps, and makes and pins those that are missing. The programs of an adopted set go on with their own.
    fn load(&self, object: &[u8], offsets: &Offsets, pins: &Pins) -> Result<Ebpf, ProbeError> {
        let mut loader = EbpfLoader::new();
        offsets.set_globals(&mut loader);
        let image_buckets = buckets(self.sizes.images);
        set_sizes(&mut loader, self.sizes, &image_buckets);
        loader.map_max_entries(names::TID_SLOT, self.tid_elements);
        for name in pins::MAPS {
            loader.map_pin_path(name, pins.map(name));
        }
        if self.lacks_ids {
            loader.map_pin_path(names::TID_SLOT, pins.fresh_map(names::TID_SLOT)?);
        }
        loader.override_global("IMAGE_SECRET", &self.secret, true);
        let ebpf = loader.load(object).map_err(|error| ProbeError::maps(error, self.sizes))?;
        if !self.adopted {
            pins.note_secret(self.secret)?;
        }
        Ok(ebpf)
    }

    /// Attaches the hooks for CPU time, unless they are, and notes that the set is complete.
    fn attach(
        &self,
        ebpf: &mut Ebpf,
        btf: &aya::Btf,
        offsets: &Offsets,
        pins: &Pins,
    ) -> Result<Vec<HookState>, ProbeError> {
        let state = |hook, failure| HookState { hook, method: None, failure };
        if self.is_same() {
            return Ok(SCHED_HOOKS.map(|hook| state(hook, None)).to_vec());
        }
        // The verifier takes its time: all programs are loaded before the first one is attached.
        let mut hooks = Vec::with_capacity(SCHED_HOOKS.len());
        for hook in SCHED_HOOKS {
            let failure = required(hook, hook.load(ebpf, btf, offsets))?;
            hooks.push(state(hook, failure));
        }
        if self.adopted {
            // Until all links are replaced, the next agent is to replace them again.
            pins.note_programs(0)?;
        }
        if self.lacks_ids {
            owners::enter(ebpf, &pins.owners()?)?;
        }
        for HookState { hook, failure, .. } in &mut hooks {
            if failure.is_none() {
                *failure = required(*hook, hook.attach(ebpf, pins))?;
            }
            if failure.is_some() {
                // An earlier program may be attached, and enter threads into a map that no other program reads.
                pins.remove_link(hook.name)?;
            }
        }
        if self.lacks_ids {
            // As late as this: until then an agent finds that the map is to be made again.
            pins.replace_map(names::TID_SLOT)?;
        }
        pins.note_programs(0)?;
        Ok(hooks)
    }
}

/// Why a hook is not live. Fails if nothing can be counted without it.
fn required(hook: Hook, result: Result<(), ProbeError>) -> Result<Option<String>, ProbeError> {
    match result {
        Ok(()) => Ok(None),
        Err(error) if hook.required => Err(error),
        Err(error) => Ok(Some(with_causes(&error))),
    }
}

/// A secret that no user can guess.
fn new_secret() -> Result<u64, ProbeError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(ProbeError::load)?;
    Ok(u64::from_le_bytes(bytes))
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
        tid_slot: MapData,
        image_hooks: ImageHooks,
        hooks: Vec<HookState>,
        adopted: bool,
    ) -> Result<Probe, ProbeError> {
        Ok(Probe {
            tid_slot,
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
            sizes: self.sizes,
        })
    }
}

/// Whether this binary was built without BPF programs.
#[must_use]
pub fn is_stub() -> bool {
    object::elf().is_err()
}

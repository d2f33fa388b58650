//! vmIndex, vmStorageIndex and vmNetworkIndex: small, dense, and the same for the same thing until the host
//! reboots, over restarts of the agent.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tracing::warn;
use uuid::Uuid;

use super::{VmIndex, VmUuid};

/// The file in `state.dir`.
const FILE: &str = "indexes.json";

/// Version of the file.
const FORMAT: u32 = 1;

/// What tells one run of the kernel from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Who a VM is: what stays the same while its process, name and state change.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Identity {
    /// Its UUID. A VM that is started anew is the same VM.
    Uuid(VmUuid),
    /// A VM that has no UUID, or one that another VM has too, is its process.
    Process {
        /// Process id.
        pid: u32,
        /// Start in clock ticks since boot, which tells one process with that id from another.
        start_ticks: u64,
    },
}

/// A part of a VM that has an index of its own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Part<'a> {
    /// A disk, by its name in the guest.
    Disk(&'a str),
    /// A network interface, by its address.
    Nic(&'a str),
}

/// Gives each thing the smallest index that is free. A VM with a UUID, and what belongs to it, keeps its indexes
/// while it is away; a process gives them back with its end.
#[derive(Debug, Default)]
pub(super) struct Indexes {
    given: HashMap<Identity, Given>,
    taken: BTreeSet<u32>,
    store: Option<Store>,
    is_new: bool,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
struct Given {
    index: u32,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    disks: BTreeMap<String, u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    nics: BTreeMap<String, u32>,
}

#[derive(Debug)]
struct Store {
    dir: PathBuf,
    boot_id: String,
    has_failed: bool,
}

/// The file as it is written.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    format: u32,
    boot_id: String,
    vms: BTreeMap<Uuid, Given>,
}

#[derive(Debug, Error)]
enum BrokenFile {
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    #[error("it has format {0}, this kvmeter knows {FORMAT}")]
    Format(u32),
    #[error("it gives the index {0} twice, or is none")]
    Index(u32),
}

impl Indexes {
    /// Takes what an earlier agent has given since the host booted. A file that is not understood is set aside,
    /// and everything gets an index anew.
    pub(super) fn load(dir: &Path) -> Self {
        let boot_id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
        Self::load_of(dir, boot_id)
    }

    fn load_of(dir: &Path, boot_id: String) -> Self {
        let path = dir.join(FILE);
        let given = match fs::read(&path) {
            Ok(octets) => read(&octets, &boot_id).unwrap_or_else(|error| {
                set_aside(&path, &error);
                HashMap::new()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => HashMap::new(),
            Err(error) => {
                warn!("Cannot read {}: {error}; VMs may get other indexes", path.display());
                HashMap::new()
            }
        };
        let taken = given.values().map(|given| given.index).collect();
        let store = Some(Store { dir: dir.to_owned(), boot_id, has_failed: false });
        Self { given, taken, store, is_new: false }
    }

    /// The index of this VM, its own or a new one.
    pub(super) fn assign(&mut self, identity: Identity) -> VmIndex {
        if let Some(given) = self.given.get(&identity) {
            return VmIndex(given.index);
        }
        let index = smallest_free(&self.taken);
        self.taken.insert(index);
        self.given.insert(identity, Given { index, ..Given::default() });
        self.is_new |= matches!(identity, Identity::Uuid(_));
        VmIndex(index)
    }

    /// The index of a VM, if it has one.
    pub(super) fn get(&self, identity: Identity) -> Option<VmIndex> {
        self.given.get(&identity).map(|given| VmIndex(given.index))
    }

    /// The index of a part of a VM that has one.
    pub(super) fn assign_part(&mut self, identity: Identity, part: Part<'_>) -> u32 {
        let given = self.given.entry(identity).or_default();
        let (parts, name) = match part {
            Part::Disk(name) => (&mut given.disks, name),
            Part::Nic(name) => (&mut given.nics, name),
        };
        if let Some(&index) = parts.get(name) {
            return index;
        }
        let index = smallest_free(&parts.values().copied().collect());
        parts.insert(name.to_owned(), index);
        self.is_new |= matches!(identity, Identity::Uuid(_));
        index
    }

    /// Takes back the index of a VM that cannot come again.
    pub(super) fn release(&mut self, identity: Identity) {
        if matches!(identity, Identity::Process { .. })
            && let Some(given) = self.given.remove(&identity)
        {
            self.taken.remove(&given.index);
        }
    }

    /// The processes that have indexes.
    pub(super) fn processes(&self) -> Vec<Identity> {
        let is_process = |identity: &&Identity| matches!(identity, Identity::Process { .. });
        self.given.keys().filter(is_process).copied().collect()
    }

    /// Writes down what is new. A failure is reported once, and tried again with the next change.
    pub(super) fn save(&mut self) {
        let Some(store) = self.store.as_mut().filter(|_| self.is_new) else { return };
        let vms = self
            .given
            .iter()
            .filter_map(|(identity, given)| match identity {
                Identity::Uuid(uuid) => Some((uuid.to_uuid(), given.clone())),
                Identity::Process { .. } => None,
            })
            .collect();
        let saved = Saved { format: FORMAT, boot_id: store.boot_id.clone(), vms };
        match write(&store.dir, &saved) {
            Ok(()) => (self.is_new, store.has_failed) = (false, false),
            Err(error) if !store.has_failed => {
                store.has_failed = true;
                warn!(
                    "Cannot write {}: {error}; VMs may get other indexes when kvmeter starts again",
                    store.dir.join(FILE).display()
                );
            }
            Err(_) => {}
        }
    }
}

fn smallest_free(taken: &BTreeSet<u32>) -> u32 {
    // The first number that is missing in the ascending set.
    let free = (1..).zip(taken).find(|&(number, &taken)| number != taken);
    free.map_or_else(|| taken.last().map_or(1, |last| last.saturating_add(1)), |(number, _)| number)
}

fn read(octets: &[u8], boot_id: &str) -> Result<HashMap<Identity, Given>, BrokenFile> {
    let saved: Saved = serde_json::from_slice(octets)?;
    if saved.format != FORMAT {
        return Err(BrokenFile::Format(saved.format));
    }
    if saved.boot_id != boot_id {
        return Ok(HashMap::new());
    }
    let mut taken = BTreeSet::new();
    for given in saved.vms.values() {
        check(given.index, &mut taken)?;
        for parts in [&given.disks, &given.nics] {
            let mut taken = BTreeSet::new();
            parts.values().try_for_each(|&index| check(index, &mut taken))?;
        }
    }
    let identified = |(uuid, given): (Uuid, Given)| (Identity::Uuid(uuid.into()), given);
    Ok(saved.vms.into_iter().map(identified).collect())
}

fn check(index: u32, taken: &mut BTreeSet<u32>) -> Result<(), BrokenFile> {
    let is_index = (1..=i32::MAX.unsigned_abs()).contains(&index);
    if is_index && taken.insert(index) { Ok(()) } else { Err(BrokenFile::Index(index)) }
}

fn set_aside(path: &Path, error: &BrokenFile) {
    let aside = path.with_extension("json.broken");
    let done = match fs::rename(path, &aside) {
        Ok(()) => format!("it is kept as {}", aside.display()),
        Err(error) => format!("it cannot be set aside: {error}"),
    };
    warn!("{} is not understood ({error}); VMs get new indexes, and {done}", path.display());
}

/// A crash at any moment leaves the old file or the new one.
fn write(dir: &Path, saved: &Saved) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let unfinished = dir.join("indexes.json.new");
    let mut file = File::create(&unfinished)?;
    serde_json::to_writer_pretty(&mut file, saved)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&unfinished, dir.join(FILE))?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn process(pid: u32) -> Identity {
        Identity::Process { pid, start_ticks: 1 }
    }

    const fn uuid(number: u8) -> Identity {
        Identity::Uuid(VmUuid::of_bytes([number; 16]))
    }

    fn load(dir: &tempfile::TempDir) -> Indexes {
        Indexes::load_of(dir.path(), "boot".to_owned())
    }

    #[test]
    fn indexes_are_dense_and_stay() {
        let mut indexes = Indexes::default();
        let given = [process(7), uuid(1), process(9)].map(|id| indexes.assign(id).0);
        assert_eq!(given, [1, 2, 3]);
        assert_eq!(indexes.assign(process(7)).0, 1);
        indexes.release(process(7));
        assert_eq!(indexes.assign(process(11)).0, 1, "a process that is gone gives its index back");
        indexes.release(uuid(1));
        assert_eq!(indexes.assign(process(12)).0, 4);
        assert_eq!(indexes.assign(uuid(1)).0, 2, "a VM with a UUID comes back");
    }

    #[test]
    fn parts_keep_theirs_when_others_come_and_go() {
        let mut indexes = Indexes::default();
        indexes.assign(uuid(1));
        let part = |indexes: &mut Indexes, part| indexes.assign_part(uuid(1), part);
        assert_eq!(part(&mut indexes, Part::Disk("vda")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vdb")), 2);
        assert_eq!(part(&mut indexes, Part::Nic("52:54:00:00:00:01")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vda")), 1);
        assert_eq!(part(&mut indexes, Part::Disk("vdc")), 3);
    }

    #[test]
    fn a_restart_changes_nothing_and_a_reboot_everything() {
        let dir = tempfile::tempdir().unwrap();
        let mut indexes = load(&dir);
        indexes.assign(process(3));
        indexes.assign(uuid(2));
        indexes.assign(uuid(1));
        indexes.assign_part(uuid(1), Part::Disk("vdb"));
        indexes.assign_part(uuid(1), Part::Disk("vda"));
        indexes.save();

        let mut again = load(&dir);
        assert_eq!(again.assign(uuid(1)).0, 3);
        assert_eq!(again.assign_part(uuid(1), Part::Disk("vda")), 2);
        assert_eq!(again.assign(uuid(9)).0, 1, "what the process had is free");

        let mut rebooted = Indexes::load_of(dir.path(), "another".to_owned());
        assert_eq!(rebooted.assign(uuid(1)).0, 1);
    }

    #[test]
    fn a_broken_file_is_set_aside() {
        let whole = {
            let dir = tempfile::tempdir().unwrap();
            let mut indexes = load(&dir);
            indexes.assign(uuid(1));
            indexes.save();
            fs::read(dir.path().join(FILE)).unwrap()
        };
        let twice = r#"{"format":1,"boot_id":"boot","vms":{
            "01010101-0101-0101-0101-010101010101":{"index":1},"02020202-0202-0202-0202-020202020202":{"index":1}}}"#;
        let broken = [b"".as_slice(), b"\xff\xfe", b"{\"format\":2}", twice.as_bytes()];
        let cut = (0..whole.len() - 1).map(|len| &whole[..len]);
        for octets in broken.into_iter().chain(cut) {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(FILE), octets).unwrap();
            let mut indexes = load(&dir);
            assert_eq!(indexes.assign(uuid(5)).0, 1);
            assert_eq!(fs::read(dir.path().join("indexes.json.broken")).unwrap(), octets);
            indexes.save();
            assert_eq!(load(&dir).assign(uuid(5)).0, 1);
        }
    }

    #[test]
    fn a_directory_that_cannot_be_written_costs_nothing_but_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let mut indexes = Indexes::load_of(&file, "boot".to_owned());
        assert_eq!(indexes.assign(uuid(1)).0, 1);
        indexes.save();
        assert_eq!(indexes.assign(uuid(2)).0, 2);
    }
}

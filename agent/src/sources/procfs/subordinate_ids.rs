//! Whose subordinate user ids there are (subuid(5)). A user can have processes with them outside of the user's namespaces, too: by a
//! set-user-ID program that one of these ids owns.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{PoisonError, RwLock},
};

use rustix::fs::{Mode, OFlags};

/// Most bytes of a file that are read.
const MAX_FILE: u64 = 1 << 20;

/// The files: the ids of users, and the names by which the former has them.
const FILES: [&str; 2] = ["/etc/subuid", "/etc/passwd"];

/// What the files said when they were read last.
static KNOWN: RwLock<Option<Known>> = RwLock::new(None);

#[derive(Debug)]
struct Known {
    versions: [Option<Version>; 2],
    ids: SubordinateIds,
}

/// What tells whether a file has changed.
#[derive(Debug, Eq, PartialEq)]
struct Version {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Version {
    fn of(file: &Metadata) -> Self {
        Self { inode: file.ino(), size: file.size(), changed: (file.ctime(), file.ctime_nsec()) }
    }
}

/// The user to whom a user id is subordinate, as the files were when [`refresh`] was called last; else the id itself. Reads no file.
pub(super) fn owner(user: u32) -> u32 {
    let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
    known.as_ref().map_or(user, |known| known.ids.owner(user))
}

/// Reads the files if they have changed.
pub(super) fn refresh() {
    let versions = FILES.map(|file| std::fs::metadata(file).ok().as_ref().map(Version::of));
    {
        let known = KNOWN.read().unwrap_or_else(PoisonError::into_inner);
        if known.as_ref().is_some_and(|known| known.versions == versions) {
            return;
        }
    }
    let [subuid, passwd] = FILES.map(|file| start_of(Path::new(file)).unwrap_or_default());
    let ids = SubordinateIds::parse(&subuid, &passwd);
    *KNOWN.write().unwrap_or_else(PoisonError::into_inner) = Some(Known { versions, ids });
}

/// The whole lines at the start of a regular file. To open another one may block.
fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let how = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, how, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    file.take(MAX_FILE).read_to_end(&mut content)?;
    if content.len() as u64 == MAX_FILE {
        let lines = content.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
        content.truncate(lines);
    }
    Ok(content)
}

/// Ranges of user ids that do not overlap, ascending.
#[derive(Debug, Default, Eq, PartialEq)]
struct SubordinateIds {
    ranges: Vec<Range>,
    /// Ids of users that have a name: no one else's.
    users: HashSet<u32>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Range<O = u32> {
    first: u32,
    last: u32,
    /// Not 0.
    owner: O,
}

impl SubordinateIds {
    /// A line that is none is left out. Ids that root alone has are on no one's account: its containers are not root. Ids that several
    /// have are on one account, which is none of theirs.
    fn parse(subuid: &[u8], passwd: &[u8]) -> Self {
        let passwd = String::from_utf8_lossy(passwd);
        let by_name: HashMap<&str, u32> = passwd
            .lines()
            .filter_map(|line| {
                // name:password:UID:…
                let mut fields = line.split(':');
                Some((fields.next()?, fields.nth(1)?.parse().ok()?))
            })
            .collect();
        let users: HashSet<u32> = by_name.values().copied().collect();
        // The id of no one else that stands for these.
        let first_free =
            |first: u32, last: u32| (first..=last).find(|id| *id != 0 && !users.contains(id));
        let subuid = String::from_utf8_lossy(subuid);
        let mut unknown = HashMap::new();
        let ranges = subuid.lines().filter_map(|line| {
            // name or UID:first:count
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let first: u32 = fields.next()?.trim().parse().ok()?;
            let count: u32 = fields.next()?.trim().parse().ok()?;
            let last = first.saturating_add(count.checked_sub(1)?);
            let id = by_name.get(name).copied().or_else(|| name.parse().ok());
            // Of a user that only another service of names knows, all ids are one.
            let owner = id.or_else(|| {
                let free = unknown.entry(name).or_insert_with(|| first_free(first, last));
                *free
            })?;
            Some(Range { first, last, owner })
        });
        let mut ids = Vec::new();
        for (first, last, owner) in disjoint(ranges) {
            let owner = owner.or_else(|| first_free(first, last)).filter(|owner| *owner != 0);
            ids.extend(owner.map(|owner| Range { first, last, owner }));
        }
        Self { ranges: ids, users }
    }

    fn owner(&self, user: u32) -> u32 {
        let after = self.ranges.partition_point(|range| range.first <= user);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        let owner = range.filter(|range| user <= range.last).map(|range| range.owner);
        owner.filter(|_| user != 0 && !self.users.contains(&user)).unwrap_or(user)
    }
}

/// Ranges without overlaps, ascending, each with its first and last id and its owner; `None` = several have these ids.
fn disjoint<O: Copy + Ord>(ranges: impl Iterator<Item = Range<O>>) -> Vec<(u32, u32, Option<O>)> {
    // Where ranges begin (1) and after where they end (-1).
    let mut borders: Vec<(u64, O, isize)> = ranges
        .flat_map(|range| {
            let after = u64::from(range.last) + 1;
            [(u64::from(range.first), range.owner, 1), (after, range.owner, -1)]
        })
        .collect();
    borders.sort_unstable();
    let mut owners: BTreeMap<O, isize> = BTreeMap::new();
    let mut disjoint: Vec<(u32, u32, Option<O>)> = Vec::new();
    let mut before = 0;
    for (at, owner, change) in borders {
        let ends = at.checked_sub(1).and_then(|last| u32::try_from(last).ok());
        if let (Some(last), Ok(first)) = (ends, u32::try_from(before))
            && before < at
            && let Some((&one, _)) = owners.first_key_value()
        {
            let owner = Some(one).filter(|_| owners.len() == 1);
            match disjoint.last_mut() {
                Some((_, end, its)) if u64::from(*end) + 1 == before && *its == owner => {
                    *end = last;
                }
                _ => disjoint.push((first, last, owner)),
            }
        }
        before = at;
        let number = owners.entry(owner).or_default();
        *number += change;
        if *number == 0 {
            owners.remove(&owner);
        }
    }
    disjoint
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, cmp::Ordering};

    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:/bin/sh\nbob:x:1001:1:::\nqemu:x:100007:1:::\n";

    fn owners(subuid: &str, users: &[u32]) -> Vec<u32> {
        let ids = SubordinateIds::parse(subuid.as_bytes(), PASSWD);
        users.iter().map(|user| ids.owner(*user)).collect()
    }

    #[test]
    fn ids_are_those_of_the_user_whom_the_file_names() {
        let file =
            "ann:100000:65536\n1001:165536:65536\nann:300000:10\nldap:400000:10\nldap:500000:10\n";
        let ids = [99_999, 100_000, 165_535, 165_536, 231_072, 300_009, 300_010, 400_009, 500_000];
        let owners = owners(file, &ids);
        assert_eq!(owners, [99_999, 1000, 1000, 1001, 231_072, 1000, 300_010, 400_000, 400_000]);
    }

    #[test]
    fn what_the_file_does_not_tell_clearly_is_the_id_itself() {
        for file in [
            "",
            "root:100000:65536",
            "0:100000:65536",
            "ann:100000",
            "ann:100000:0",
            "ann:-1:65536",
            "ann:100000:99999999999",
            "ann\0:x:y\n:100000:65536\n",
        ] {
            assert_eq!(owners(file, &[0, 150_001, 100_007]), [0, 150_001, 100_007], "{file}");
        }
        // Neither root nor a user with a name is another's.
        let all = owners("ann:0:4294967295", &[0, 1000, 1001, 100_007, 5, u32::MAX]);
        assert_eq!(all, [0, 1000, 1001, 100_007, 1000, u32::MAX]);
    }

    #[test]
    fn ids_that_several_have_are_one_account_and_the_others_of_their_ranges_stay() {
        let file = "ann:100000:65536\nbob:150000:65536\nann:160000:10\n";
        let ids = [100_000, 149_999, 150_000, 150_001, 160_005, 165_535, 165_536, 215_535, 215_536];
        let found = owners(file, &ids);
        assert_eq!(found, [1000, 1000, 150_000, 150_000, 150_000, 150_000, 1001, 1001, 215_536]);
        // Root's containers are not on the account of a user.
        let file = "root:100000:1000000000\nann:100000:65536\n";
        assert_eq!(owners(file, &[100_000, 165_535, 165_536]), [100_000, 100_000, 165_536]);
        // All of them, but not those that are someone's.
        let all = owners("ann:0:4294967295\nbob:1:4294967295", &[0, 5, 1000, 100_007, u32::MAX]);
        assert_eq!(all, [0, 1, 1000, 100_007, 1001]);
    }

    #[test]
    fn what_stands_for_a_user_without_a_known_id_is_no_other_users() {
        let ids = [100_006, 100_007, 100_008, 300_000];
        let found = owners("ldap:100007:10\nldap:300000:10\n", &ids);
        assert_eq!(found, [100_006, 100_007, 100_008, 100_008]);
        assert_eq!(owners("bob:100007:1\nldap:100007:1", &[100_007]), [100_007]);
    }

    /// A user that counts how often two were compared.
    #[derive(Clone, Copy, Debug)]
    struct Counted<'a>(u32, &'a Cell<u64>);

    impl Ord for Counted<'_> {
        fn cmp(&self, other: &Self) -> Ordering {
            self.1.set(self.1.get() + 1);
            self.0.cmp(&other.0)
        }
    }

    impl PartialOrd for Counted<'_> {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }

    impl PartialEq for Counted<'_> {
        fn eq(&self, other: &Self) -> bool {
            self.cmp(other).is_eq()
        }
    }

    impl Eq for Counted<'_> {}

    #[test]
    fn a_file_of_many_ranges_costs_near_their_number() {
        const RANGES: u32 = 4000;
        let compared = Cell::new(0);
        let range = |n| Range { first: n, last: n + 4_000_000, owner: Counted(n, &compared) };
        let found = disjoint((0..RANGES).map(range));
        // The first id of the first range, those that several have, and the last one of the last range.
        let ids: Vec<_> = found.iter().map(|(first, last, _)| (*first, *last)).collect();
        let end = RANGES + 3_999_999;
        assert_eq!(ids, [(0, 0), (1, end - 1), (end, end)]);
        assert!(compared.get() < 100 * u64::from(RANGES), "{}", compared.get());
    }

    #[test]
    fn what_is_no_regular_file_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subuid");
        assert!(start_of(&path).is_err());
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        let (sender, result) = std::sync::mpsc::channel();
        std::thread::spawn({
            let path = path.clone();
            move || sender.send(start_of(&path).is_err())
        });
        assert_eq!(result.recv_timeout(std::time::Duration::from_secs(10)), Ok(true));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "ann:1:2\n").unwrap();
        assert_eq!(start_of(&path).unwrap(), b"ann:1:2\n");
    }

    proptest! {
        #[test]
        fn no_file_makes_a_user_root_or_root_a_user(
            file in "((ann|bob|root|0|7|x):[0-9]{1,11}:[0-9]{1,11}\n){0,20}",
            user in any::<u32>(),
        ) {
            let found = owners(&file, &[0, user]);
            prop_assert_eq!(found[0], 0);
            prop_assert_eq!(found[1] == 0, user == 0);
        }
    }
}

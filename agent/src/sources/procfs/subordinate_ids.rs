//! Whose subordinate user ids there are (subuid(5)). A user can have processes with them outside of the user's namespaces, too: by a
//! set-user-ID program that one of these ids owns.

use std::{
    collections::{HashMap, HashSet},
    fs::{File, Metadata},
    io::{self, Read as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::{PoisonError, RwLock},
};

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

/// The whole lines at the start of a file.
fn start_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut content)?;
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
struct Range {
    first: u32,
    last: u32,
    /// `None` = several users have some of these ids.
    owner: Option<u32>,
}

impl SubordinateIds {
    /// A line that is none is left out, and so are root's: its containers are not root.
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
        let subuid = String::from_utf8_lossy(subuid);
        let mut unknown = HashMap::new();
        let mut ranges: Vec<Range> = subuid
            .lines()
            .filter_map(|line| {
                // name or UID:first:count
                let mut fields = line.split(':');
                let name = fields.next().filter(|name| !name.is_empty())?;
                let first: u32 = fields.next()?.trim().parse().ok()?;
                let count: u32 = fields.next()?.trim().parse().ok()?;
                let last = first.saturating_add(count.checked_sub(1)?);
                let id = by_name.get(name).copied().or_else(|| name.parse().ok());
                // Of a user that only another service of names knows, all ids are one.
                let owner = id.unwrap_or_else(|| *unknown.entry(name).or_insert(first));
                Some(Range { first, last, owner: Some(owner) })
            })
            .filter(|range| range.owner != Some(0))
            .collect();
        ranges.sort_unstable_by_key(|range| (range.first, range.last));
        let mut disjoint: Vec<Range> = Vec::new();
        for range in ranges {
            match disjoint.last_mut() {
                Some(before) if range.first <= before.last => {
                    before.last = before.last.max(range.last);
                    before.owner = before.owner.filter(|owner| Some(*owner) == range.owner);
                }
                _ => disjoint.push(range),
            }
        }
        Self { ranges: disjoint, users: by_name.into_values().collect() }
    }

    fn owner(&self, user: u32) -> u32 {
        let after = self.ranges.partition_point(|range| range.first <= user);
        let range = after.checked_sub(1).and_then(|at| self.ranges.get(at));
        let owner = range.filter(|range| user <= range.last).and_then(|range| range.owner);
        owner.filter(|_| user != 0 && !self.users.contains(&user)).unwrap_or(user)
    }
}

#[cfg(test)]
mod tests {
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
            "ann:100000:65536\nbob:150000:65536",
            "ann:0:4294967295\nbob:1:4294967295",
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

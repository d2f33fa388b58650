//! What a systemd unit says of the conditions under which its service runs.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Directories of units. A unit is read from the first directory that has it (systemd.unit(5)).
const DIRS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

/// The unit that comes with kvmeter, for a host on which none is installed.
const SHIPPED: &str = include_str!("../../../etc/kvmeter.service");

/// Largest file of a unit in bytes.
const MAX_LEN: u64 = 1 << 20;

/// Settings that have no part in what a service may do.
const IRRELEVANT: &[&str] = &[
    "Type",
    "ExecStart",
    "ExecStartPre",
    "Restart",
    "RestartSec",
    "WatchdogSec",
    "RuntimeDirectoryMode",
    "StateDirectoryMode",
    "UMask",
    "Documentation",
    "Environment",
    "EnvironmentFile",
    "TimeoutStartSec",
    "TimeoutStopSec",
    "SystemCallErrorNumber",
    "Nice",
    "Slice",
];

/// The `[Service]` section of a unit and its drop-ins: for each setting the values in their order. An empty value has
/// cleared those before it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Unit {
    /// The file, or what it is instead.
    pub(super) from: String,
    settings: BTreeMap<String, Vec<String>>,
    /// Settings that were read by one of the methods: those that the sandbox applies.
    known: RefCell<BTreeSet<&'static str>>,
}

impl Unit {
    /// The unit of that name, or in that file if `name` has a `/`, with its drop-ins. Without one, the unit that comes with
    /// kvmeter.
    ///
    /// # Errors
    ///
    /// Those of reading the files; another one if there is no such unit, or if it is masked.
    pub(super) fn find(name: &str) -> io::Result<Self> {
        if name.contains('/') {
            let mut unit = Self { from: name.to_owned(), ..Self::default() };
            unit.add(&read_unit(Path::new(name))?);
            return Ok(unit);
        }
        let file_name =
            if name.contains('.') { name.to_owned() } else { format!("{name}.service") };
        Self::find_in(&DIRS.map(PathBuf::from), &file_name)
    }

    fn find_in(dirs: &[PathBuf], file_name: &str) -> io::Result<Self> {
        let mut unit = Self::default();
        let file = dirs.iter().map(|dir| dir.join(file_name)).find(|path| path.exists());
        match &file {
            Some(path) => unit.add(&read_unit(path)?),
            None if file_name == "kvmeter.service" => unit.add(SHIPPED),
            None => {
                return Err(io::Error::new(io::ErrorKind::NotFound, "there is no such unit"));
            }
        }
        unit.from = file.map_or_else(
            || "the unit that comes with kvmeter; none is installed".to_owned(),
            |path| path.display().to_string(),
        );
        let mut drop_ins = BTreeMap::new();
        for dir in dirs {
            let Ok(entries) = fs::read_dir(dir.join(format!("{file_name}.d"))) else { continue };
            for entry in entries.flatten() {
                if entry.path().extension().is_some_and(|extension| extension == "conf") {
                    drop_ins.entry(entry.file_name()).or_insert_with(|| entry.path());
                }
            }
        }
        for path in drop_ins.values() {
            unit.add(&read(path)?);
            unit.from = format!("{}, {}", unit.from, path.display());
        }
        Ok(unit)
    }

    fn add(&mut self, text: &str) {
        let text = text.replace("\\\n", " ");
        let mut is_service = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with(['#', ';']) || line.is_empty() {
                continue;
            }
            if line.starts_with('[') {
                is_service = line == "[Service]";
                continue;
            }
            let Some((name, value)) = line.split_once('=').filter(|_| is_service) else { continue };
            let values = self.settings.entry(name.trim().to_owned()).or_default();
            match value.trim() {
                "" => values.clear(),
                value => values.push(value.to_owned()),
            }
        }
    }

    /// The last value of a setting.
    pub(super) fn value(&self, name: &'static str) -> Option<&str> {
        self.known.borrow_mut().insert(name);
        self.settings.get(name)?.last().map(String::as_str)
    }

    /// Whether a setting is on.
    pub(super) fn is_on(&self, name: &'static str) -> bool {
        self.value(name).is_some_and(|value| is_true(value) == Some(true))
    }

    /// The words of all values of a setting.
    pub(super) fn words(&self, name: &'static str) -> Vec<String> {
        self.known.borrow_mut().insert(name);
        let values = self.settings.get(name).into_iter().flatten();
        values.flat_map(|value| value.split_whitespace()).map(str::to_owned).collect()
    }

    /// The paths of a setting. Their prefixes `-` (may be missing) and `+` (of the unit's root) are left out.
    pub(super) fn paths(&self, name: &'static str) -> Vec<PathBuf> {
        let words = self.words(name);
        words.iter().map(|path| PathBuf::from(path.trim_start_matches(['-', '+']))).collect()
    }

    /// The set that a list of names gives. Values with `~` take names away, from `all` if the first does.
    pub(super) fn set(&self, name: &'static str, all: &[String]) -> Option<BTreeSet<String>> {
        self.known.borrow_mut().insert(name);
        let values = self.settings.get(name).filter(|values| !values.is_empty())?;
        let mut set = BTreeSet::new();
        for (place, value) in values.iter().enumerate() {
            if let Some(taken) = value.strip_prefix('~') {
                if place == 0 {
                    set.extend(all.iter().cloned());
                }
                taken.split_whitespace().for_each(|name| {
                    set.remove(name);
                });
            } else {
                set.extend(value.split_whitespace().map(str::to_owned));
            }
        }
        Some(set)
    }

    /// Whether `kvmeter prepare` is run before the service starts.
    pub(super) fn prepares(&self) -> bool {
        let commands = self.settings.get("ExecStartPre").into_iter().flatten();
        commands.into_iter().any(|command| command.contains("kvmeter prepare"))
    }

    /// The settings of the unit that have not been read, and that may limit the service.
    pub(super) fn others(&self) -> Vec<String> {
        let is_other = |(name, values): &(&String, &Vec<String>)| {
            let is_off = values.last().is_none_or(|value| is_true(value) == Some(false));
            !is_off
                && !self.known.borrow().contains(name.as_str())
                && !IRRELEVANT.contains(&name.as_str())
        };
        self.settings.iter().filter(is_other).map(|(name, _)| name.clone()).collect()
    }
}

/// systemd.syntax(7)
fn is_true(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

/// The text of a unit, which is neither a drop-in nor masked: an empty file, or a link to `/dev/null` (systemd.unit(5)), hides
/// the unit of that name in every other directory, and systemd starts no service for it.
fn read_unit(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() == 0 {
        let masked = format!(
            "{} is empty or a link to /dev/null: the unit is masked, and systemd does not start the service; see systemctl unmask",
            path.display()
        );
        return Err(io::Error::other(masked));
    }
    read(path)
}

fn read(path: &Path) -> io::Result<String> {
    use io::Read as _;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_unit_of_kvmeter_is_understood() {
        let mut unit = Unit::default();
        unit.add(SHIPPED);
        assert_eq!(unit.value("User"), Some("kvmeter"));
        assert_eq!(unit.words("AmbientCapabilities").len(), 4);
        assert_eq!(unit.paths("ReadOnlyPaths"), [Path::new("/proc"), Path::new("/sys")]);
        assert_eq!(
            unit.paths("InaccessiblePaths"),
            [Path::new("/proc/kcore"), Path::new("/proc/kallsyms")]
        );
        assert!(unit.is_on("PrivateDevices") && unit.is_on("ProtectHome") && unit.prepares());
        let others = unit.others();
        assert!(others.contains(&"SystemCallFilter".to_owned()), "{others:?}");
        assert!(!others.iter().any(|name| ["Type", "PrivateDevices"].contains(&name.as_str())));
    }

    #[test]
    fn drop_ins_add_to_the_unit_and_an_empty_value_clears() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = ["etc", "lib"].map(|name| dir.path().join(name));
        for (path, text) in [
            (
                "lib/kvmeter.service",
                "[Unit]\nUser=nobody\n[Service]\nUser=a\nReadWritePaths=/a \\\n /b\n",
            ),
            ("lib/kvmeter.service.d/10.conf", "[Service]\nUser=hidden\n"),
            ("etc/kvmeter.service.d/10.conf", "[Service]\nReadWritePaths=\nReadWritePaths=-/c\n"),
            ("etc/kvmeter.service.d/20.conf", "[Service]\n# User=c\nUser=b\nPrivateTmp=no\n"),
            ("etc/kvmeter.service.d/30.bak", "[Service]\nUser=d\n"),
        ] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let unit = Unit::find_in(&dirs, "kvmeter.service").unwrap();
        assert_eq!(unit.value("User"), Some("b"));
        assert_eq!(unit.paths("ReadWritePaths"), [Path::new("/c")]);
        assert!(!unit.is_on("PrivateTmp") && unit.others().is_empty() && !unit.prepares());
        assert!(Unit::find_in(&dirs, "other.service").is_err());
        // A masked unit is that of no lower directory.
        let masked = dirs[0].join("kvmeter.service");
        for mask in ["/dev/null", "/empty"] {
            let target = if mask == "/empty" { dir.path().join("empty") } else { mask.into() };
            fs::write(&target, "").unwrap();
            symlink(&target, &masked).unwrap();
            for found in
                [Unit::find_in(&dirs, "kvmeter.service"), Unit::find(&masked.display().to_string())]
            {
                let error = found.unwrap_err().to_string();
                assert!(error.contains("masked"), "{error}");
            }
            fs::remove_file(&masked).unwrap();
        }
        let none = Unit::find_in(&[], "kvmeter.service").unwrap();
        assert!(none.from.ends_with("none is installed") && none.prepares());
    }

    #[test]
    fn a_set_may_be_written_by_what_is_not_in_it() {
        let all = ["A", "B", "C"].map(str::to_owned);
        let set = |text: &str| {
            let mut unit = Unit::default();
            unit.add(&format!("[Service]\n{text}"));
            unit.set("CapabilityBoundingSet", &all).map(|set| set.into_iter().collect::<String>())
        };
        assert_eq!(set("CapabilityBoundingSet=A B\nCapabilityBoundingSet=C").unwrap(), "ABC");
        assert_eq!(set("CapabilityBoundingSet=~A B").unwrap(), "C");
        assert_eq!(set("CapabilityBoundingSet=A B\nCapabilityBoundingSet=~B").unwrap(), "A");
        assert_eq!(set("CapabilityBoundingSet="), None);
    }
}

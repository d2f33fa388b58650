//! `kvmeter check --as-service`: judges what the service may do, by becoming the service.
//!
//! The process enters a mount namespace and takes the user and the capabilities that the unit describes, then executes itself
//! again, as the service manager would: so every check is tried with the service's rights.

mod sandbox;
mod unit;

use std::{
    ffi::OsString,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use serde::{Deserialize, Serialize};

use self::{
    sandbox::{Places, Rights, capabilities, enter},
    unit::Unit,
};
use super::Check;

/// The directories of `ProtectHome=`.
const HOMES: [&str; 3] = ["/home", "/root", "/run/user"];

/// What is known of the service in which a check runs.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct Service {
    /// Where the unit was found.
    unit: String,
    user: String,
    uid: u32,
    /// Settings of the unit that limit the service, and were not applied.
    untried: Vec<String>,
    /// Directories that the service manager makes for the service.
    made: Vec<PathBuf>,
    /// Whether `kvmeter prepare` makes the directory of the pins.
    prepares: bool,
}

impl Service {
    /// The line that says whose rights were judged.
    pub(super) fn line(&self) -> Check {
        let mut found =
            format!("those of the service, user {} ({}); {}", self.user, self.uid, self.unit);
        if !self.untried.is_empty() {
            found = format!("{found}; not tried: {}", self.untried.join(" "));
        }
        Check::ok(super::RIGHTS, found)
    }

    /// Whether the service manager makes that directory, or one above it, or gives it to the service's user: systemd does both
    /// before each start (`setup_exec_directory()` in systemd's exec-invoke.c).
    pub(super) fn will_make(&self, dir: &Path) -> bool {
        let made = self.made.iter().find(|made| dir.starts_with(made));
        made.is_some_and(|made| match owner(made) {
            Some(owner) => owner != self.uid || !dir.exists(),
            None => true,
        })
    }

    /// Whether `kvmeter prepare` makes the directory of the pins before each start, or gives root's to the service's user.
    pub(super) fn will_prepare(&self, pin_dir: &Path) -> bool {
        self.prepares && owner(pin_dir).is_none_or(|owner| owner == 0)
    }
}

/// Executes `kvmeter check` again with the rights of the service `unit`, which is a name, or a path if it has a `/`. Returns the
/// check that failed if that cannot be.
#[must_use]
pub fn become_service(unit: &str, config: Option<&Path>, json: bool) -> Check {
    let failed = |found: String, fix: &str| Check::fail(super::RIGHTS, found, fix);
    if !Uid::effective().is_root() {
        let user = Uid::effective();
        return failed(
            format!("user {user} may not become the service, and nothing else was checked"),
            "run kvmeter check --as-service as root",
        );
    }
    let found = match Unit::find(unit) {
        Ok(found) => found,
        Err(error) => {
            return failed(
                format!("{unit}: {error}"),
                "name the unit: --as-service=UNIT or =/PATH",
            );
        }
    };
    let (service, rights) = match describe(&found) {
        Ok(described) => described,
        Err((found, fix)) => return failed(found, fix),
    };
    let known = match serde_json::to_string(&service) {
        Ok(known) => known,
        Err(error) => return failed(error.to_string(), "name another unit"),
    };
    let mut arguments: Vec<OsString> = vec!["check".into(), "--inside".into(), known.into()];
    if json {
        arguments.push("--json".into());
    }
    if let Some(path) = config {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        arguments.extend(["--config".into(), path.into()]);
    }
    if let Err(error) = enter(&rights) {
        return failed(
            format!("{error}, so nothing else was checked"),
            "run it outside of containers, as root with all capabilities",
        );
    }
    let error = Command::new("/proc/self/exe").arg0("kvmeter").args(arguments).exec();
    failed(format!("cannot execute kvmeter as the service: {error}"), "install kvmeter in /usr/bin")
}

fn describe(unit: &Unit) -> Result<(Service, Rights), (String, &'static str)> {
    if unit.is_on("DynamicUser") {
        return Err((
            format!("{}: DynamicUser=yes: the user is made when the service starts", unit.from),
            "set User= to a user that exists",
        ));
    }
    let name = unit.value("User").unwrap_or("root").to_owned();
    let (uid, own_group) = user(&name).ok_or_else(|| {
        (
            format!("{}: the user {name} does not exist, so the service cannot start", unit.from),
            "systemd-sysusers kvmeter.conf, or useradd --system --user-group kvmeter",
        )
    })?;
    let gid = match unit.value("Group") {
        Some(name) => group(name).ok_or_else(|| {
            let said = format!("the group {name} does not exist, so the service cannot start");
            (
                format!("{}: {said}", unit.from),
                "systemd-sysusers kvmeter.conf, or groupadd --system",
            )
        })?,
        None => own_group,
    };
    let mut groups = vec![gid];
    if let Ok(name) = std::ffi::CString::new(name.as_str()) {
        let of_user = getgrouplist(&name, Gid::from_raw(gid)).unwrap_or_default();
        groups.extend(of_user.into_iter().map(Gid::as_raw));
    }
    groups.extend(unit.words("SupplementaryGroups").iter().filter_map(|name| group(name)));
    groups.sort_unstable();
    groups.dedup();

    let all: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    let ambient = unit.set("AmbientCapabilities", &all).unwrap_or_default();
    let bounding = unit.set("CapabilityBoundingSet", &all).map(capabilities);
    let no_new_privileges = unit.is_on("NoNewPrivileges");
    let mut made: Vec<PathBuf> = Vec::new();
    for (setting, above) in [("StateDirectory", "/var/lib"), ("RuntimeDirectory", "/run")] {
        made.extend(unit.words(setting).iter().map(|name| Path::new(above).join(name)));
    }
    let places = places(unit, &made);
    let service = Service {
        unit: unit.from.clone(),
        user: name,
        uid,
        untried: unit.others(),
        made,
        prepares: unit.prepares(),
    };
    let ambient = capabilities(ambient);
    Ok((service, Rights { uid, gid, groups, ambient, bounding, no_new_privileges, places }))
}

fn places(unit: &Unit, made: &[PathBuf]) -> Places {
    let paths = |names: &[&str]| -> Vec<PathBuf> { names.iter().map(PathBuf::from).collect() };
    let mut places = Places {
        has_private_devices: unit.is_on("PrivateDevices"),
        inaccessible: unit.paths("InaccessiblePaths"),
        read_only: unit.paths("ReadOnlyPaths"),
        read_write: unit.paths("ReadWritePaths"),
        ..Places::default()
    };
    places.read_write.extend_from_slice(made);
    if unit.value("PrivateTmp").is_some_and(|value| value == "disconnected")
        || unit.is_on("PrivateTmp")
    {
        places.temporary = paths(&["/tmp", "/var/tmp"]);
        places.read_write.extend(paths(&["/tmp", "/var/tmp"]));
    }
    match unit.value("ProtectHome") {
        Some("read-only") => places.read_only.extend(paths(&HOMES)),
        Some("tmpfs") => places.inaccessible.extend(paths(&HOMES)),
        _ if unit.is_on("ProtectHome") => places.inaccessible.extend(paths(&HOMES)),
        _ => {}
    }
    match unit.value("ProtectSystem") {
        Some("strict") => {
            places.read_only.extend(paths(&["/"]));
            places.read_write.extend(paths(&["/dev", "/proc", "/sys"]));
        }
        Some("full") => places.read_only.extend(paths(&["/usr", "/boot", "/efi", "/etc"])),
        _ if unit.is_on("ProtectSystem") => {
            places.read_only.extend(paths(&["/usr", "/boot", "/efi"]));
        }
        _ => {}
    }
    if unit.is_on("ProtectKernelTunables") {
        places.read_only.extend(paths(&["/proc/sys", "/sys"]));
    }
    if unit.is_on("ProtectControlGroups") {
        places.read_only.extend(paths(&["/sys/fs/cgroup"]));
    }
    // Of one path that is in both lists, the setting that names it counts: it is in the list of read-only paths by name.
    let named = unit.paths("ReadOnlyPaths");
    places.read_write.retain(|path| !named.contains(path));
    places
}

fn owner(dir: &Path) -> Option<u32> {
    std::fs::metadata(dir).ok().map(|found| found.uid())
}

/// User and group id of a user, given by its name or number. A number needs no entry.
fn user(name: &str) -> Option<(u32, u32)> {
    match name.parse::<u32>() {
        Ok(uid) => {
            let found = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            Some((uid, found.map_or(uid, |user| user.gid.as_raw())))
        }
        Err(_) => {
            let user = User::from_name(name).ok().flatten()?;
            Some((user.uid.as_raw(), user.gid.as_raw()))
        }
    }
}

fn group(name: &str) -> Option<u32> {
    match name.parse() {
        Ok(gid) => Some(gid),
        Err(_) => Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_another_user_is_given_to_the_service() {
        let dir = tempfile::tempdir().unwrap();
        let own = owner(dir.path()).unwrap();
        let missing = dir.path().join("missing");
        for (uid, is_made) in [(own, false), (own + 1, true)] {
            let made = vec![dir.path().to_owned(), missing.clone()];
            let service = Service { uid, made, ..Service::default() };
            assert_eq!(service.will_make(dir.path()), is_made);
            assert!(service.will_make(&missing) && service.will_make(&missing.join("below")));
            assert!(service.will_make(&dir.path().join("below")), "the agent makes it there");
            assert!(!service.will_make(Path::new("/")), "the unit does not name it");
        }
    }

    #[test]
    fn pins_of_root_are_given_to_the_service() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing");
        for prepares in [false, true] {
            let service = Service { prepares, ..Service::default() };
            assert_eq!(service.will_prepare(&missing), prepares);
            assert_eq!(service.will_prepare(Path::new("/")), prepares);
            let is_root = owner(dir.path()) == Some(0);
            assert_eq!(service.will_prepare(dir.path()), prepares && is_root);
        }
    }
}

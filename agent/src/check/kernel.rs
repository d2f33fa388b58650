//! What the running kernel must have.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::Check;
use crate::probe::{KERNEL_BTF, btf, pid_max};

/// File with the kernel's BTF: [`KERNEL_BTF`], or the environment variable `KVMETER_BTF`, by which a kernel without BTF or
/// with another kernel's can be simulated.
#[must_use]
pub fn btf_path() -> PathBuf {
    std::env::var_os("KVMETER_BTF").map_or_else(|| PathBuf::from(KERNEL_BTF), PathBuf::from)
}

pub(super) fn checks() -> Vec<Check> {
    let path = btf_path();
    vec![
        assess_btf(&path, first_bytes(&path)),
        assess_lockdown(fs::read_to_string("/sys/kernel/security/lockdown").ok().as_deref()),
        assess_ptrace_scope(
            fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope").ok().as_deref(),
        ),
        assess_pid_max(pid_max()),
        // A private /dev of a service lacks the node, but the device is there all the same.
        assess_kvm(["/dev/kvm", "/sys/class/misc/kvm"].iter().any(|path| Path::new(path).exists())),
    ]
}

fn first_bytes(path: &Path) -> io::Result<[u8; 2]> {
    let mut bytes = [0; 2];
    File::open(path)?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn assess_btf(path: &Path, first_bytes: io::Result<[u8; 2]>) -> Check {
    const NAME: &str = "kernel BTF";
    let path = path.display();
    match first_bytes {
        Ok(magic) if [btf::MAGIC.to_le_bytes(), btf::MAGIC.to_be_bytes()].contains(&magic) => {
            Check::ok(NAME, path.to_string())
        }
        Ok(_) => Check::fail(NAME, format!("{path} is no BTF"), "unset KVMETER_BTF"),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            Check::fail(NAME, format!("{path} may not be read"), "run as root")
        }
        Err(e) => Check::fail(
            NAME,
            format!("{path}: {e}"),
            "boot a kernel that is built with CONFIG_DEBUG_INFO_BTF=y, as those of the distributions are",
        ),
    }
}

/// `state` is the file's content, such as `none [integrity] confidentiality`.
fn assess_lockdown(state: Option<&str>) -> Check {
    const NAME: &str = "lockdown";
    let mode =
        state.and_then(|state| state.split_once('[')?.1.split_once(']')).map(|(mode, _)| mode);
    match mode {
        Some("confidentiality") => Check::warn(
            NAME,
            "confidentiality: helpers by which BPF programs read kernel memory are refused",
            "if hooks fail below, boot with lockdown=integrity",
        ),
        Some(mode) => Check::ok(NAME, mode),
        None => Check::ok(NAME, "the kernel shows none"),
    }
}

/// `scope` is the file's content; `None` without the Yama security module.
fn assess_ptrace_scope(scope: Option<&str>) -> Check {
    const NAME: &str = "ptrace scope";
    match scope.map(str::trim) {
        None => Check::ok(NAME, "no Yama"),
        Some("3") => Check::warn(
            NAME,
            "3: /proc/PID/task/TID/syscall is closed to every process, so a vCPU is found by debugfs or its thread's name only",
            "set kernel.yama.ptrace_scope to 2 or less in sysctl.d and reboot, or mount debugfs",
        ),
        Some(scope) => Check::ok(NAME, scope),
    }
}

fn assess_pid_max(pid_max: io::Result<u32>) -> Check {
    const NAME: &str = "pid_max";
    match pid_max {
        Ok(pid_max) => Check::ok(
            NAME,
            format!(
                "{pid_max}: the table of thread ids takes {} KiB",
                u64::from(pid_max).div_ceil(4) * 8 / 1024
            ),
        ),
        Err(e) => Check::fail(
            NAME,
            format!("/proc/sys/kernel/pid_max: {e}"),
            "mount procfs: mount -t proc proc /proc",
        ),
    }
}

fn assess_kvm(exists: bool) -> Check {
    const NAME: &str = "KVM";
    if exists {
        Check::ok(NAME, "/dev/kvm")
    } else {
        Check::warn(
            NAME,
            "/dev/kvm is missing: only QEMU without KVM (TCG) can run here",
            "modprobe kvm_intel or kvm_amd, and turn virtualisation on in the firmware",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;

    #[test]
    fn btf_is_recognised_by_its_magic_and_has_a_fix() {
        let path = Path::new("/sys/kernel/btf/vmlinux");
        assert_eq!(assess_btf(path, Ok([0x9f, 0xeb])).verdict, Verdict::Ok);
        assert_eq!(assess_btf(path, Ok([0xeb, 0x9f])).verdict, Verdict::Ok);
        let other = assess_btf(path, Ok(*b"\x7fE"));
        assert_eq!(other.verdict, Verdict::Fail("unset KVMETER_BTF".into()));
        let closed = assess_btf(path, Err(io::ErrorKind::PermissionDenied.into()));
        assert_eq!(closed.verdict, Verdict::Fail("run as root".into()));
        let missing = assess_btf(path, Err(io::ErrorKind::NotFound.into()));
        assert!(
            matches!(&missing.verdict, Verdict::Fail(fix) if fix.contains("CONFIG_DEBUG_INFO_BTF=y")),
            "{missing:?}"
        );
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(assess_lockdown(Some("none [integrity] confidentiality\n")).found, "integrity");
        assert_eq!(
            assess_lockdown(Some("[none] integrity confidentiality\n")).verdict,
            Verdict::Ok
        );
        assert_eq!(assess_lockdown(None).verdict, Verdict::Ok);
        assert_eq!(assess_lockdown(Some("]garbage[")).verdict, Verdict::Ok);
        let strict = assess_lockdown(Some("none integrity [confidentiality]\n"));
        assert_eq!(
            strict.verdict,
            Verdict::Warn("if hooks fail below, boot with lockdown=integrity".into())
        );
    }

    #[test]
    fn only_the_strictest_ptrace_scope_is_a_problem() {
        for scope in [None, Some("0\n"), Some("1\n"), Some("2\n")] {
            assert_eq!(assess_ptrace_scope(scope).verdict, Verdict::Ok);
        }
        let strict = assess_ptrace_scope(Some("3\n"));
        assert!(matches!(&strict.verdict, Verdict::Warn(fix) if fix.contains("ptrace_scope to 2")));
    }

    #[test]
    fn pid_max_shows_its_cost_in_memory() {
        assert_eq!(
            assess_pid_max(Ok(4_194_304)).found,
            "4194304: the table of thread ids takes 8192 KiB"
        );
        let wrong = assess_pid_max(Err(io::ErrorKind::NotFound.into()));
        assert!(matches!(&wrong.verdict, Verdict::Fail(fix) if fix.contains("mount -t proc")));
    }

    #[test]
    fn without_kvm_the_fix_is_the_module() {
        assert_eq!(assess_kvm(true).verdict, Verdict::Ok);
        assert!(
            matches!(assess_kvm(false).verdict, Verdict::Warn(fix) if fix.contains("modprobe"))
        );
    }
}

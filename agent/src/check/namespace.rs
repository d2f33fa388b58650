//! Whether the agent lives where the VMs do: in the host's PID and network namespaces, and on the host's root.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Check, Verdict};

/// Numbers of the first namespaces (`PROC_PID_INIT_INO`, and `PROC_NET_INIT_INO` since Linux 6.18, in the kernel's
/// include/linux/proc_ns.h).
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
const FIRST_NETWORK_NAMESPACE: &str = "net:[4026531833]";

/// kthreadd, which is in the first network namespace.
const KERNEL_THREAD: u32 = 2;

pub(super) fn checks() -> Vec<Check> {
    let link = |path: String| fs::read_link(path).ok();
    let pid = assess_pid(link("/proc/self/ns/pid".to_owned()).as_deref());
    let is_outside = pid.fails();
    let own = link("/proc/self/ns/net".to_owned());
    let first = link(format!("/proc/{KERNEL_THREAD}/ns/net")).filter(|_| !is_outside);
    let mut checks = vec![pid, assess_network(own, first, is_outside)];
    let place = |path: &str| fs::metadata(path).ok().map(|root| (root.dev(), root.ino()));
    let of_init = place("/proc/1/root").filter(|_| !is_outside);
    checks.extend(assess_root(place("/"), of_init));
    checks
}

/// What the agent does not see of the host because of where it lives, each with the fix.
#[must_use]
pub fn blind_spots() -> Vec<String> {
    let spot = |Check { name, found, verdict }| match verdict {
        Verdict::Ok => None,
        Verdict::Warn(fix) | Verdict::Fail(fix) => Some(format!("{name}: {found}. Fix: {fix}")),
    };
    checks().into_iter().filter_map(spot).collect()
}

fn assess_pid(own: Option<&Path>) -> Check {
    const NAME: &str = "PID namespace";
    match own {
        Some(own) if own == Path::new(FIRST_PID_NAMESPACE) => Check::ok(NAME, "the host's"),
        Some(_) => Check::fail(
            NAME,
            "kvmeter's own: it sees no process of the host, so no VM, and thread ids of the kernel are others there",
            "run kvmeter in the host's PID namespace (hostPID: true, --pid=host)",
        ),
        None => Check::fail(NAME, "/proc/self/ns/pid cannot be read", "mount /proc"),
    }
}

fn assess_network(own: Option<PathBuf>, first: Option<PathBuf>, is_outside: bool) -> Check {
    const NAME: &str = "network namespace";
    const FIX: &str =
        "run kvmeter in the host's network namespace (hostNetwork: true, --network=host)";
    match (own, first) {
        (Some(own), _) if own == Path::new(FIRST_NETWORK_NAMESPACE) => {
            Check::ok(NAME, "the host's")
        }
        (Some(own), Some(first)) if own == first => Check::ok(NAME, "the host's"),
        (Some(_), Some(_)) => Check::fail(
            NAME,
            "kvmeter's own: vmNetworkIfIndex and vmNetworkParent are 0 for every VM of the host",
            FIX,
        ),
        _ if is_outside => Check::warn(NAME, "not known in a PID namespace of kvmeter's own", FIX),
        _ => Check::warn(NAME, "not known without CAP_SYS_PTRACE", "run as root"),
    }
}

/// `None`: not known. A service has a mount namespace of its own, too, but the host's root in it.
fn assess_root(own: Option<(u64, u64)>, of_init: Option<(u64, u64)>) -> Option<Check> {
    const NAME: &str = "root";
    let (own, of_init) = own.zip(of_init)?;
    Some(if own == of_init {
        Check::ok(NAME, "the host's")
    } else {
        Check::warn(
            NAME,
            "kvmeter's own: what is not mounted there from the host, it does not see",
            "mount /sys, with its bpf and kernel/debug, and /run/libvirt of the host, or run kvmeter without a container",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespaces_of_its_own_fail() {
        let is_ok = |check: &Check| check.verdict == Verdict::Ok;
        assert!(is_ok(&assess_pid(Some(Path::new("pid:[4026531836]")))));
        for other in [Some(Path::new("pid:[4026532001]")), None] {
            assert!(assess_pid(other).fails());
        }
        let net = |number: u32| Some(PathBuf::from(format!("net:[{number}]")));
        assert!(is_ok(&assess_network(net(4_026_531_840), net(4_026_531_840), false)));
        assert!(is_ok(&assess_network(net(4_026_531_833), None, false)));
        let other = assess_network(net(4_026_532_002), net(4_026_531_840), false);
        assert!(matches!(&other.verdict, Verdict::Fail(fix) if fix.contains("hostNetwork")));
        for is_outside in [false, true] {
            let unknown = assess_network(net(4_026_532_002), None, is_outside);
            assert!(matches!(unknown.verdict, Verdict::Warn(_)));
        }
    }

    #[test]
    fn a_root_of_its_own_warns() {
        assert_eq!(assess_root(Some((1, 2)), Some((1, 2))).unwrap().verdict, Verdict::Ok);
        let own = assess_root(Some((9, 2)), Some((1, 2))).unwrap();
        assert!(matches!(own.verdict, Verdict::Warn(_)));
        assert_eq!(assess_root(Some((9, 2)), None), None);
    }
}

//! The BPF programs, loaded one by one without being attached.

use std::fs;

use super::Check;
use crate::{
    config::Limits,
    probe::{HookState, ProbeError, Sizes, try_hooks, with_causes},
};

pub(super) fn checks(limits: &Limits) -> Vec<Check> {
    assess(try_hooks(&super::btf_path(), sizes(limits)))
}

/// The sizes of the tables that the configuration asks for.
#[must_use]
pub fn sizes(limits: &Limits) -> Sizes {
    Sizes::of(limits.vms, limits.threads, limits.images)
}

/// The line for all hooks if they cannot be tried.
pub(super) fn untried() -> Check {
    Check::warn(
        "hooks",
        "not tried, because the kernel or the capabilities above do not allow it",
        "fix that first, then run the check again",
    )
}

fn assess(tried: Result<Vec<HookState>, ProbeError>) -> Vec<Check> {
    match tried {
        Ok(hooks) => {
            let (for_disks, others): (Vec<_>, Vec<_>) =
                hooks.into_iter().partition(|state| state.method.is_some());
            let for_disks = for_disks.chunk_by(|a, b| a.method == b.method);
            let others = others.into_iter().map(assess_hook);
            others.chain(for_disks.filter_map(assess_method)).collect()
        }
        Err(e) => vec![assess_object(&e)],
    }
}

const FIX: &str = "run Linux 5.15 or later; `dmesg` may tell which policy refuses the program";

/// The hooks of one method.
fn assess_method(hooks: &[HookState]) -> Option<Check> {
    let method = hooks.first()?.method?;
    let name = method.name();
    let failure = hooks.iter().find_map(|state| state.failure.as_ref());
    let is_off = |ftrace: String| ftrace.trim() == "0";
    if method.is_optional()
        && failure.is_none()
        && fs::read_to_string("/proc/sys/kernel/ftrace_enabled").is_ok_and(is_off)
    {
        let found = "loads, but the kernel does not run it while kernel.ftrace_enabled is 0";
        return Some(Check::warn(name, found, "sysctl -w kernel.ftrace_enabled=1"));
    }
    Some(match failure {
        None => Check::ok(name, hooks[0].hook.purpose),
        // Another method does its work.
        Some(why) if method.is_optional() => Check::ok(name, format!("not here: {why}")),
        Some(why) => {
            Check::warn(name, format!("{why}; it is for the {}", hooks[0].hook.purpose), FIX)
        }
    })
}

fn assess_hook(HookState { hook, failure, .. }: HookState) -> Check {
    let name = hook.name;
    match failure {
        None => Check::ok(name, hook.purpose),
        Some(why) if hook.required => {
            Check::fail(name, format!("{why}; nothing can be counted without it"), FIX)
        }
        Some(why) => Check::warn(name, format!("{why}; it is for the {}", hook.purpose), FIX),
    }
}

fn assess_object(error: &ProbeError) -> Check {
    Check::fail("hooks", with_causes(error), error.fix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{check::Verdict, probe::SCHED_HOOKS};

    #[test]
    fn a_failed_hook_is_reported_with_its_purpose() {
        let all = SCHED_HOOKS.map(|hook| HookState { hook, method: None, failure: None }).to_vec();
        assert!(assess(Ok(all)).iter().all(|check| check.verdict == Verdict::Ok));

        for hook in SCHED_HOOKS {
            let check =
                assess_hook(HookState { hook, method: None, failure: Some("EPERM".into()) });
            assert_eq!(check.name, hook.name);
            let (fix, told) = match &check.verdict {
                Verdict::Fail(fix) if hook.required => (fix, "nothing can be counted"),
                Verdict::Warn(fix) if !hook.required => (fix, hook.purpose),
                _ => panic!("{check:?}"),
            };
            assert!(check.found.starts_with("EPERM; ") && check.found.contains(told), "{check:?}");
            assert!(fix.starts_with("run Linux 5.15 or later"), "{fix}");
        }
    }

    #[test]
    fn an_error_of_all_programs_has_its_fix() {
        let fix = |error: ProbeError| match assess(Err(error)).as_slice() {
            [Check { verdict: Verdict::Fail(fix), .. }] => fix.clone(),
            other => panic!("{other:?}"),
        };
        assert!(fix(ProbeError::BuiltWithout).contains("`cargo xtask setup`"));
        let missing = || std::io::ErrorKind::NotFound.into();
        let no_btf = ProbeError::NoBtf { path: "/btf".into(), source: missing() };
        assert!(fix(no_btf).contains("CONFIG_DEBUG_INFO_BTF=y"));
        assert!(fix(ProbeError::PidMax(missing())).contains("/proc"));
    }
}

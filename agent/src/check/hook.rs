//! The BPF programs, tried one by one without being attached.

use std::error::Error;

use super::Need;
use crate::probe::{HookState, ProbeError, try_hooks};

pub(super) fn needs() -> Vec<Need> {
    judge(try_hooks(&super::btf_path()))
}

/// For the hooks where they could not be tried.
pub(super) fn untried() -> Need {
    Need::warn(
        "hooks",
        "not tried, because the kernel or the capabilities above do not allow it",
        "mend that first, then check again",
    )
}

fn judge(tried: Result<Vec<HookState>, ProbeError>) -> Vec<Need> {
    match tried {
        Ok(hooks) => {
            let (of_images, others): (Vec<_>, Vec<_>) =
                hooks.into_iter().partition(|state| state.method.is_some());
            let of_images = of_images.chunk_by(|a, b| a.method == b.method);
            let others = others.into_iter().map(judge_hook);
            others.chain(of_images.filter_map(judge_method)).collect()
        }
        Err(e) => vec![judge_object(&e)],
    }
}

const FIX: &str = "run Linux 5.15 or later; `dmesg` may tell which policy refuses the program";

/// The hooks of one way to count disks.
fn judge_method(hooks: &[HookState]) -> Option<Need> {
    let method = hooks.first()?.method?;
    let name = format!("disks {}", method.name());
    let failure = hooks.iter().find_map(|state| state.failure.as_ref());
    Some(match failure {
        None => Need::ok(name, hooks[0].hook.purpose),
        // The others do its work.
        Some(why) if method.is_optional() => Need::ok(name, format!("not here: {why}")),
        Some(why) => {
            Need::warn(name, format!("{why}; it is for the {}", hooks[0].hook.purpose), FIX)
        }
    })
}

fn judge_hook(HookState { hook, failure, .. }: HookState) -> Need {
    let name = format!("hook {}", hook.name);
    match failure {
        None => Need::ok(name, hook.purpose),
        Some(why) if hook.required => {
            Need::fail(name, format!("{why}; nothing can be counted without it"), FIX)
        }
        Some(why) => Need::warn(name, format!("{why}; it is for the {}", hook.purpose), FIX),
    }
}

fn judge_object(error: &ProbeError) -> Need {
    let fix = match error {
        ProbeError::BuiltWithout | ProbeError::NoProgram { .. } => {
            "install a complete build, or run `cargo xtask setup` and build it again"
        }
        ProbeError::NoBtf { .. } | ProbeError::Btf { .. } => {
            "boot Linux 5.15 or later, built with CONFIG_DEBUG_INFO_BTF=y"
        }
        _ => "run as root; `dmesg` may tell which policy refuses BPF",
    };
    let mut found = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        found = format!("{found}: {cause}");
        source = cause.source();
    }
    Need::fail("hooks", found, fix)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use crate::probe::SCHED_HOOKS;

    #[test]
    fn a_hook_that_fails_costs_what_it_is_for() {
        let all = SCHED_HOOKS.map(|hook| HookState { hook, method: None, failure: None }).to_vec();
        assert!(judge(Ok(all)).iter().all(|need| need.verdict == Verdict::Ok));

        for hook in SCHED_HOOKS {
            let need = judge_hook(HookState { hook, method: None, failure: Some("EPERM".into()) });
            assert_eq!(need.name, format!("hook {}", hook.name));
            let (fix, told) = match &need.verdict {
                Verdict::Fail(fix) if hook.required => (fix, "nothing can be counted"),
                Verdict::Warn(fix) if !hook.required => (fix, hook.purpose),
                _ => panic!("{need:?}"),
            };
            assert!(need.found.starts_with("EPERM; ") && need.found.contains(told), "{need:?}");
            assert!(fix.starts_with("run Linux 5.15 or later"), "{fix}");
        }
    }

    #[test]
    fn what_keeps_all_programs_from_loading_has_its_fix() {
        let fix = |error: ProbeError| match judge(Err(error)).as_slice() {
            [Need { verdict: Verdict::Fail(fix), .. }] => fix.clone(),
            other => panic!("{other:?}"),
        };
        assert!(fix(ProbeError::BuiltWithout).contains("`cargo xtask setup`"));
        let missing = || std::io::ErrorKind::NotFound.into();
        let no_btf = ProbeError::NoBtf { path: "/btf".into(), source: missing() };
        assert!(fix(no_btf).contains("CONFIG_DEBUG_INFO_BTF=y"));
        assert!(fix(ProbeError::PidMax(missing())).starts_with("run as root"));
    }
}

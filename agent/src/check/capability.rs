//! Capabilities of this process.

use caps::{CapSet, CapsHashSet, errors::CapsError};

use super::{Check, Judged};
use crate::privileges::REQUIRED;

pub(super) fn checks(judged: &Judged) -> Vec<Check> {
    assess(caps::read(None, CapSet::Effective), judged)
}

fn assess(effective: Result<CapsHashSet, CapsError>, judged: &Judged) -> Vec<Check> {
    let effective = match effective {
        Ok(effective) => effective,
        Err(e) => return vec![Check::fail("capabilities", e.to_string(), "run as root")],
    };
    REQUIRED
        .iter()
        .map(|required| {
            let name = required.capability.to_string();
            if effective.contains(&required.capability) {
                let until = if required.always { "" } else { ", until the probes are attached" };
                Check::ok(name, format!("to {}{until}", required.why))
            } else {
                let fix = match judged {
                    Judged::Caller => format!(
                        "run as root, and list {name} in CapabilityBoundingSet= of the service if it has that"
                    ),
                    Judged::Service(_) => format!(
                        "list {name} in AmbientCapabilities= and CapabilityBoundingSet= of the service"
                    ),
                };
                Check::fail(name, format!("not held; it is needed to {}", required.why), fix)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Verdict;
    use caps::Capability;

    #[test]
    fn each_capability_that_is_missing_is_named_with_its_fix() {
        let all: CapsHashSet = REQUIRED.iter().map(|required| required.capability).collect();
        assert!(
            assess(Ok(all.clone()), &Judged::Caller)
                .iter()
                .all(|check| check.verdict == Verdict::Ok)
        );

        for missing in REQUIRED.map(|required| required.capability) {
            let held = all.iter().copied().filter(|held| *held != missing).collect();
            let failed: Vec<Check> = assess(Ok(held), &Judged::Caller)
                .into_iter()
                .filter(|check| check.verdict != Verdict::Ok)
                .collect();
            let [check] = failed.as_slice() else { panic!("{failed:?}") };
            assert_eq!(check.name, missing.to_string());
            let Verdict::Fail(fix) = &check.verdict else { panic!("{check:?}") };
            assert!(fix.starts_with("run as root") && fix.contains(&check.name), "{fix}");
        }
    }

    #[test]
    fn more_capabilities_than_needed_are_ok() {
        assert!(
            assess(Ok(caps::all()), &Judged::Caller)
                .iter()
                .all(|check| check.verdict == Verdict::Ok)
        );
        assert!(caps::all().contains(&Capability::CAP_BPF));
    }
}

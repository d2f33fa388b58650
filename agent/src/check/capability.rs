//! What this process may do.

use caps::errors::CapsError;
use caps::{CapSet, CapsHashSet};

use super::Need;
use crate::privileges::REQUIRED;

pub(super) fn needs() -> Vec<Need> {
    judge(caps::read(None, CapSet::Effective))
}

fn judge(effective: Result<CapsHashSet, CapsError>) -> Vec<Need> {
    let effective = match effective {
        Ok(effective) => effective,
        Err(e) => return vec![Need::fail("capabilities", e.to_string(), "run as root")],
    };
    REQUIRED
        .iter()
        .map(|required| {
            let name = required.capability.to_string();
            if effective.contains(&required.capability) {
                let until = if required.always { "" } else { ", until the probes are attached" };
                Need::ok(name, format!("to {}{until}", required.why))
            } else {
                let fix = format!(
                    "run as root, and list {name} in CapabilityBoundingSet= of the service if it has that"
                );
                Need::fail(name, format!("not held; it is needed to {}", required.why), fix)
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
        assert!(judge(Ok(all.clone())).iter().all(|need| need.verdict == Verdict::Ok));

        for missing in REQUIRED.map(|required| required.capability) {
            let held = all.iter().copied().filter(|held| *held != missing).collect();
            let failed: Vec<Need> =
                judge(Ok(held)).into_iter().filter(|need| need.verdict != Verdict::Ok).collect();
            let [need] = failed.as_slice() else { panic!("{failed:?}") };
            assert_eq!(need.name, missing.to_string());
            let Verdict::Fail(fix) = &need.verdict else { panic!("{need:?}") };
            assert!(fix.starts_with("run as root") && fix.contains(&need.name), "{fix}");
        }
    }

    #[test]
    fn more_than_is_needed_is_no_fault() {
        assert!(judge(Ok(caps::all())).iter().all(|need| need.verdict == Verdict::Ok));
        assert!(caps::all().contains(&Capability::CAP_BPF));
    }
}

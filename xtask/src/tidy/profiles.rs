//! Code is the same in every profile: what the tests compile for development also compiles for a release, which they do not
//! build. The BPF object is built in one way in all profiles. A test may know which build it measures: no release has it.

use std::{fs, path::Path};

use anyhow::Context as _;

use super::findings::Findings;

/// What the compiler decides by the profile. `debug_assert!` is compiled in all of them.
const BY_PROFILE: [&str; 2] = ["(debug_assertions", "(overflow_checks"];

pub(crate) fn check(root: &Path, files: &[String], findings: &mut Findings) -> anyhow::Result<()> {
    let is_checked = |file: &&String| {
        file.ends_with(".rs") && !file.ends_with(file!()) && !file.contains("/tests/")
    };
    for file in files.iter().filter(is_checked) {
        let text = fs::read_to_string(root.join(file)).with_context(|| file.clone())?;
        for (line, text) in (1..).zip(text.lines()) {
            for name in BY_PROFILE.iter().filter(|name| text.contains(*name)) {
                let place = format!("{file}:{line}");
                findings.add(&place, format!("`{}` depends on the profile", &name[1..]));
            }
        }
    }
    Ok(())
}

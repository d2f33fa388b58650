//! Links between the pages: what they lead to is there.

use std::{collections::BTreeSet, fs, path::Path};

use super::findings::Findings;

pub(crate) fn check(root: &Path, files: &[String], findings: &mut Findings) -> anyhow::Result<()> {
    for page in files.iter().filter(|file| file.ends_with(".md")) {
        let text = fs::read_to_string(root.join(page))?;
        let dir = root.join(page).parent().unwrap_or(root).to_owned();
        for (line, target) in links(&text) {
            let place = format!("{page}:{line}");
            let (path, heading) = target
                .split_once('#')
                .map_or((target, None), |(path, heading)| (path, Some(heading)));
            let to = if path.is_empty() { root.join(page) } else { dir.join(path) };
            if !to.exists() {
                findings.add(&place, format!("there is no {path}"));
            } else if let Some(heading) = heading
                && !headings(&fs::read_to_string(&to)?).contains(heading)
            {
                findings.add(
                    &place,
                    format!(
                        "there is no heading #{heading} in {}",
                        if path.is_empty() { page } else { path }
                    ),
                );
            }
        }
    }
    Ok(())
}

/// The targets of `[text](target)` outside of code, each with its line; not those on the network.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut is_code = false;
    for (line, number) in text.lines().zip(1..) {
        is_code ^= line.trim_start().starts_with("```");
        if is_code || line.starts_with("    ") {
            continue;
        }
        let targets = line.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        found.extend(
            targets.filter(|target| !target.contains("://")).map(|target| (number, target)),
        );
    }
    found
}

/// The anchors that a page's headings make.
fn headings(text: &str) -> BTreeSet<String> {
    let heading = |line: &str| {
        let title = line.trim_start_matches('#');
        let is_heading = title.len() < line.len() && title.starts_with(' ');
        is_heading.then(|| {
            let kept = title.trim().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.collect::<String>().to_lowercase().replace(' ', "-")
        })
    };
    text.lines().filter_map(heading).collect()
}

//! No circle between files: of two, one can be read without the other.

use std::collections::{BTreeMap, BTreeSet};

use super::{files::is_in, findings::Findings, source::Crate};

/// Folders in which files lean on each other, and why that is so today. The list only shrinks: a folder that is here and
/// has no circle is a finding, too.
const CIRCLES: &[(&str, &str)] = &[
    ("agent/src/check", "the folder's file has the type of a check, and runs all of them"),
    ("agent/src/config", "the folder's file has the error, and makes it of a diagnostic"),
    ("agent/src/counters", "records are read, and made, by the same names"),
    ("agent/src/inventory", "views are composed out of the state that keeps them"),
    ("agent/src/probe", "hooks of images are hooks"),
    ("agent/src/run", "the report is of what the folder's file runs"),
    ("agent/src/sources/libvirt", "the event loop is started by what it reports to"),
    ("agent/src/sources/procfs", "the processes are tracked for what asks for them"),
    ("benches/src/switch", "both ways of measuring are in what they share"),
];

pub(crate) fn check(crates: &[Crate], findings: &mut Findings) {
    let circles: Vec<Vec<&str>> = crates.iter().flat_map(of).collect();
    let is_within = |circle: &[&str], folder: &str| circle.iter().all(|file| is_in(file, folder));
    for circle in &circles {
        if !CIRCLES.iter().any(|(folder, _)| is_within(circle, folder)) {
            findings
                .add(circle[0], format!("leans on files that lean on it: {}", circle.join(", ")));
        }
    }
    for (folder, _) in CIRCLES {
        if !circles.iter().any(|circle| is_within(circle, folder)) {
            findings.add(folder, "has no circle: take it off the exceptions");
        }
    }
}

/// Files that lean on each other, those of each circle together.
fn of(its: &Crate) -> Vec<Vec<&str>> {
    let edges = edges(its);
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    let mut circles = Vec::new();
    for file in edges.keys().copied() {
        if seen.contains(file) {
            continue;
        }
        let leads_back = |other: &&str| reached(&edges, other).contains(file);
        let circle: Vec<&str> = reached(&edges, file).into_iter().filter(leads_back).collect();
        if !circle.is_empty() {
            seen.extend(&circle);
            circles.push(circle);
        }
    }
    circles
}

/// Which files each file leans on. That it hands on a name of another does not count, nor that it names a folder without
/// saying which of its files is meant.
fn edges(its: &Crate) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, module) in &its.modules {
        let imports = module.imports.iter().filter(|import| !import.is_reexport);
        for mention in imports.map(|import| &import.path).chain(&module.paths) {
            let Some((named, false)) = its.find(path, &mention.segments) else { continue };
            if let Some(other) = its.modules.get(&named)
                && other.file != module.file
            {
                edges.entry(&module.file).or_default().insert(&other.file);
            }
        }
    }
    edges
}

fn reached<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut left: Vec<&str> = edges.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = left.pop() {
        if reached.insert(file) {
            left.extend(edges.get(file).into_iter().flatten());
        }
    }
    reached
}

//! Checks the printed module with two MIB compilers and against the published module.
//!
//! `imports/` has extracts of the modules that VM-MIB imports, for machines without them. The published module is read from
//! `../shared/mibs` beside the workspace, if it is there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    lab::module::{Module, WALK, bindings},
    second_mib,
};
use kvmeter::{mib, snmp::Oid};

#[test]
fn a_mib_compiler_reports_nothing() {
    xtask::require!("smilint");
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("VM-MIB");
    fs::write(&module, mib::text()).unwrap();
    assert_eq!(smilint(dir.path(), &module), "", "smilint -l 3 on the printed module");

    // The check is effective: the same module with a misspelt name is refused.
    fs::write(&module, mib::text().replace("SYNTAX       UUIDorZero", "SYNTAX       UUIDorNull"))
        .unwrap();
    assert!(smilint(dir.path(), &module).contains("UUIDorNull"));
}

#[test]
fn a_mib_compiler_takes_the_statement_of_what_is_implemented() {
    xtask::require!("smilint");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("VM-MIB"), mib::text()).unwrap();
    let module = dir.path().join("KVMETER-CAPABILITIES-MIB");
    fs::write(&module, mib::capabilities_text()).unwrap();
    assert_eq!(smilint_at("9", dir.path(), &module), "", "{}", mib::capabilities_text());
    // The check is effective.
    fs::write(&module, mib::capabilities_text().replace("vmCpuAffinity\n", "vmCpuAfinity\n"))
        .unwrap();
    assert!(smilint(dir.path(), &module).contains("vmCpuAfinity"));
}

/// One that augments a table of VM-MIB, with a root of its own.
#[test]
fn a_mib_compiler_takes_a_second_module() {
    xtask::require!("smilint");
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("VM-MIB"), mib::text()).unwrap();
    let module = dir.path().join("SECOND-MIB");
    for root in [&[1, 3, 6, 1, 4, 1, 99_999, 7][..], &[1, 3, 6, 1, 3, 99]] {
        let text = mib::smi::text(&second_mib::MODULE, &Oid::of(root));
        fs::write(&module, &text).unwrap();
        assert_eq!(smilint(dir.path(), &module), "", "{text}");
    }
}

/// smilint's messages about the module up to severity 3.
fn smilint(dir: &Path, module: &Path) -> String {
    smilint_at("3", dir, module)
}

/// The same up to another severity.
fn smilint_at(severity: &str, dir: &Path, module: &Path) -> String {
    let imports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mib_text/imports");
    let config = dir.join("smi.conf");
    fs::write(&config, format!("path {}:{}\n", imports.display(), dir.display())).unwrap();
    let output = Command::new("smilint")
        .arg("-c")
        .arg(&config)
        .args(["-s", "-l", severity])
        .arg(module)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Also checks that this compiler finds wrong values in a walk.
#[test]
fn another_compiler_takes_it_and_finds_what_does_not_agree() {
    require!("pysmi");
    let module = Module::compile(&mib::text());
    assert_eq!(module.len(), 53, "scalars and columns");
    let walk = |lines: &[&str]| {
        let lines: Vec<String> =
            lines.iter().map(|line| format!(".1.3.6.1.2.1.236.1.{line}")).collect();
        module.violations(&bindings(&lines.join("\n")))
    };
    assert!(WALK.contains(&"-Ox"));
    let right = [
        "1.1.0 = Hex-STRING: 51 45 4D\n55 ",
        "1.3.0 = OID: .0.0",
        "1.4.0 = 4711",
        "2.0 = INTEGER: 1",
        "4.1.2.1 = \"\"",
        "4.1.3.1 = Hex-STRING: 00 01 02 03 04 05 06 07 08 09 0A 0B 0C 0D 0E 0F ",
        "4.1.6.1 = INTEGER: 12",
        "4.1.14.1 = INTEGER: -1",
        "4.1.17.1 = Counter64: 18446744073709551615",
        "7.1.13.0.1 = Counter64: 0",
    ];
    assert_eq!(walk(&right), Vec::<String>::new());
    for wrong in [
        "1.1.0 = Hex-STRING: C3 28 ",
        "1.4.0 = Counter64: 1",
        "1.4.1 = 4711",
        "2.0 = INTEGER: -1",
        "4.1.1.1 = INTEGER: 1",
        "4.1.3.1 = Hex-STRING: 00 01 ",
        "4.1.6.0 = INTEGER: 12",
        "4.1.6.1 = INTEGER: 13",
        "4.1.6.1.1 = INTEGER: 12",
        "4.1.14.1 = INTEGER: -2",
        "9.9.9 = INTEGER: 1",
        "11.0 = Hex-STRING: 80 ",
    ] {
        assert_eq!(walk(&[wrong]).len(), 1, "{wrong}: {:?}", walk(&[wrong]));
    }
    assert_eq!(walk(&[right[3], right[0]]).len(), 1, "not in order");
}

#[test]
fn definitions_equal_those_of_the_published_module() {
    let path = published();
    let Ok(published) = fs::read_to_string(&path) else {
        xtask::harness::ignore(format!("there is no published module at {}", path.display()));
    };
    let (published, printed) = (definitions(&published), definitions(&mib::text()));
    for (name, definition) in &published {
        assert_eq!(printed.get(name), Some(definition), "{name}");
    }
    let unknown: Vec<_> = printed.keys().filter(|name| !published.contains_key(*name)).collect();
    assert!(unknown.is_empty(), "not in the published module: {unknown:?}");
    // 12 conventions, 6 nodes, the module, 5 tables with row and type, 53 objects, 20 notifications, 9 groups, 2 statements.
    assert_eq!(published.len(), 12 + 6 + 1 + 15 + 53 + 20 + 9 + 2);
}

fn published() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/mibs/VM-MIB.txt")
}

/// The words of each definition of an SMIv2 module, by name. Without DESCRIPTION, ORGANIZATION and CONTACT-INFO, which
/// are not normative.
fn definitions(module: &str) -> BTreeMap<String, Vec<String>> {
    let words = words(module);
    let body = words.iter().position(|word| word == ";").unwrap() + 1;
    let mut rest = &words[body..words.len() - 1];
    let mut definitions = BTreeMap::new();
    while let Some(name) = rest.first() {
        let assigned = rest.iter().position(|word| word == "::=").unwrap();
        let end = if assigned == 1 { end_of_type(rest) } else { end_of_braces(rest, assigned + 1) };
        assert_eq!(definitions.insert(name.clone(), rest[..end].to_vec()), None, "{name} twice");
        rest = &rest[end..];
    }
    definitions
}

/// A type assignment: a SEQUENCE, or a textual convention that ends with its SYNTAX.
fn end_of_type(words: &[String]) -> usize {
    if words[2] == "SEQUENCE" {
        return end_of_braces(words, 3);
    }
    assert_eq!(words[2], "TEXTUAL-CONVENTION", "{}", words[0]);
    let syntax = words.iter().position(|word| word == "SYNTAX").unwrap() + 1;
    let end = syntax + if words[syntax] == "OCTET" { 2 } else { 1 };
    match words.get(end).map(String::as_str) {
        Some("{") => end_of_braces(words, end),
        Some("(") => end + words[end..].iter().position(|word| word == ")").unwrap() + 1,
        _ => end,
    }
}

fn end_of_braces(words: &[String], open: usize) -> usize {
    assert_eq!(words[open], "{", "{:?}", &words[..=open]);
    open + words[open..].iter().position(|word| word == "}").unwrap() + 1
}

/// The tokens of a module, without comments.
fn words(module: &str) -> Vec<String> {
    const SIGNS: [&str; 12] = ["::=", "..", "{", "}", "(", ")", "[", "]", ",", ";", "|", ":"];
    let mut words: Vec<String> = Vec::new();
    let mut rest = module.trim_start();
    while !rest.is_empty() {
        let len = if rest.starts_with("--") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(string) = rest.strip_prefix('"') {
            let len = string.find('"').unwrap() + 2;
            let is_prose = words.last().is_some_and(|word| {
                ["DESCRIPTION", "ORGANIZATION", "CONTACT-INFO"].contains(&word.as_str())
            });
            words.push(if is_prose { "\"\"".to_owned() } else { rest[..len].to_owned() });
            len
        } else {
            let sign = SIGNS.into_iter().find(|sign| rest.starts_with(sign));
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
            let len =
                sign.map_or_else(|| rest.find(|c| !is_word(c)).unwrap_or(rest.len()), str::len);
            assert!(len > 0, "{:?}", rest.lines().next());
            words.push(rest[..len].to_owned());
            len
        };
        rest = rest[len..].trim_start();
    }
    words
}

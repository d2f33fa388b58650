//! The printed module against a MIB compiler and against the published module.
//!
//! `imports/` has extracts of the modules that VM-MIB imports, so that the compiler can run on a machine
//! that has none. The published module is looked for beside the workspace, in `../shared/mibs`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use kvmeter::mib;

#[test]
fn a_mib_compiler_has_nothing_to_say() {
    xtask::require!("smilint");
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join("VM-MIB");
    fs::write(&module, mib::text()).unwrap();
    assert_eq!(smilint(dir.path(), &module), "", "smilint -l 3 on the printed module");

    // What the silence is worth: the same module with one name misspelt is refused.
    fs::write(&module, mib::text().replace("SYNTAX       UUIDorZero", "SYNTAX       UUIDorNull"))
        .unwrap();
    assert!(smilint(dir.path(), &module).contains("UUIDorNull"));
}

/// What smilint says about the module up to severity 3.
fn smilint(dir: &Path, module: &Path) -> String {
    let imports = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/mib_text/imports");
    let config = dir.join("smi.conf");
    fs::write(&config, format!("path {}\n", imports.display())).unwrap();
    let output = Command::new("smilint")
        .arg("-c")
        .arg(&config)
        .args(["-s", "-l", "3"])
        .arg(module)
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn definitions_equal_those_of_the_published_module() {
    let path = published();
    let Ok(published) = fs::read_to_string(&path) else {
        println!("skipped: no published module at {}", path.display());
        return;
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

/// Each definition of an SMIv2 module as its words, by name. The words of descriptions, of the organisation
/// and of the contact are left out: they bind nobody.
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

/// The words, numbers, strings and signs of a module without its comments.
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

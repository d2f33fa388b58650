//! Rust files as their modules, the names that they import, and the paths that they write.
//!
//! The compiler's lexer reads them (`proc-macro2`), so comments and strings are out of the way and the bodies of
//! macros are in sight. What `#[cfg(test)]` stands above is left out: a test may look at anything.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A path below a crate's root, without `crate`.
pub(crate) type ModulePath = Vec<String>;

/// A crate: its modules by their paths.
#[derive(Debug, Default)]
pub(crate) struct Crate {
    pub(crate) modules: BTreeMap<ModulePath, Module>,
    /// Modules that are there in tests only.
    tests: Vec<ModulePath>,
}

/// A module: a file, or a part of one.
#[derive(Debug, Default)]
pub(crate) struct Module {
    /// Below the root of the checkout.
    pub(crate) file: String,
    pub(crate) imports: Vec<Import>,
    /// Other paths of at least two segments.
    pub(crate) paths: Vec<Mention>,
    /// Names of items that are defined here.
    items: BTreeSet<String>,
}

/// One name of a `use`.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) path: Mention,
    /// `None` = `*`.
    name: Option<String>,
    /// It only hands the name on (`pub use`).
    pub(crate) is_reexport: bool,
}

/// A path as it is written in a file.
#[derive(Debug)]
pub(crate) struct Mention {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

impl Crate {
    /// Reads the files below `src`, a directory with a `lib.rs` or a `main.rs`. Programs in `src/bin` are crates of
    /// their own.
    pub(crate) fn read(root: &Path, src: &str) -> anyhow::Result<Self> {
        let mut this = Self::default();
        this.read_dir(root, src, &[])?;
        let Self { modules, tests } = &mut this;
        modules.retain(|path, _| !tests.iter().any(|test| path.starts_with(test)));
        Ok(this)
    }

    fn read_dir(&mut self, root: &Path, dir: &str, module: &[String]) -> anyhow::Result<()> {
        let mut entries: Vec<_> = fs::read_dir(root.join(dir))
            .with_context(|| dir.to_owned())?
            .collect::<Result<_, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{dir}/{name}");
            let mut child = module.to_vec();
            if entry.file_type()?.is_dir() {
                if name != "bin" {
                    child.push(name);
                    self.read_dir(root, &path, &child)?;
                }
            } else if let Some(name) = name.strip_suffix(".rs") {
                if !matches!(name, "lib" | "main" | "mod") {
                    child.push(name.to_owned());
                }
                let tokens = tokens(&fs::read_to_string(root.join(&path))?)
                    .map_err(|error| anyhow!("{path}: {error}"))?;
                self.read_tokens(&tokens, &path, &child);
            }
        }
        Ok(())
    }

    fn read_tokens(&mut self, tokens: &[TokenTree], file: &str, path: &[String]) {
        let module = self.modules.entry(path.to_vec()).or_default();
        // A library and a program in one directory: the names of both are in the root.
        if module.file.is_empty() || !file.ends_with("main.rs") {
            file.clone_into(&mut module.file);
        }
        let mut rest = tokens;
        while let Some(first) = rest.first() {
            if let Some((item, after)) = test_item(rest) {
                if let Some(name) = declared_module(item) {
                    self.tests.push([path, &[name]].concat());
                }
                rest = after;
            } else if let Some((name, body, after)) = inline_module(rest) {
                let mut child = path.to_vec();
                child.push(name);
                self.read_tokens(&body, file, &child);
                rest = after;
            } else if let TokenTree::Group(group) = first {
                let inside: Vec<TokenTree> = group.stream().into_iter().collect();
                self.read_tokens(&inside, file, path);
                rest = &rest[1..];
            } else {
                let module = self.modules.entry(path.to_vec()).or_default();
                rest = module.take(rest);
            }
        }
    }

    /// The module in which what `path` names is defined, or that it names, and whether it names the module itself;
    /// `None` = it is of another crate. `from` is the module that writes the path.
    pub(crate) fn find(&self, from: &[String], path: &[String]) -> Option<(ModulePath, bool)> {
        self.find_within(from, path, 0)
    }

    fn find_within(
        &self,
        from: &[String],
        path: &[String],
        depth: usize,
    ) -> Option<(ModulePath, bool)> {
        // `pub use` of each other's names.
        if depth > 16 {
            return None;
        }
        let (mut at, mut rest) = match self.start(from, path, depth)? {
            (at, Some(rest)) => (at, rest),
            (at, None) => return Some((at, false)),
        };
        while let [name, after @ ..] = rest {
            let mut child = at.clone();
            child.push(name.clone());
            if self.modules.contains_key(&child) {
                (at, rest) = (child, after);
                continue;
            }
            let module = self.modules.get(&at)?;
            if module.items.contains(name) {
                return Some((at, false));
            }
            let imported = module.imports.iter().filter(|import| match &import.name {
                Some(imported) => imported == name,
                None => true,
            });
            for import in imported {
                let mut segments = import.path.segments.clone();
                // Through a `*` only what is really there.
                if import.name.is_none() {
                    segments.push(name.clone());
                }
                let whole = [&segments, after].concat();
                if whole.as_slice() == path && at == from {
                    continue;
                }
                let found = self.find_within(&at, &whole, depth + 1);
                if found.is_some() && (import.name.is_some() || self.has(&at, &segments, depth)) {
                    return found;
                }
            }
            // Made by a macro, or a variant.
            return Some((at, false));
        }
        Some((at, true))
    }

    fn has(&self, from: &[String], path: &[String], depth: usize) -> bool {
        let Some((module, is_module)) = self.find_within(from, path, depth + 1) else {
            return false;
        };
        is_module
            || path.last().is_some_and(|name| {
                self.modules.get(&module).is_some_and(|module| module.items.contains(name))
            })
    }

    /// Where a path begins, and what is left of it; `None` = it begins with an item.
    fn start<'a>(
        &self,
        from: &[String],
        path: &'a [String],
        depth: usize,
    ) -> Option<(ModulePath, Option<&'a [String]>)> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "crate" => Some((Vec::new(), Some(rest))),
            "self" => Some((from.to_vec(), Some(rest))),
            "super" => {
                let (_, parent) = from.split_last()?;
                match rest.first() {
                    Some(next) if next == "super" => self.start(parent, rest, depth),
                    _ => Some((parent.to_vec(), Some(rest))),
                }
            }
            name => {
                let mut child = from.to_vec();
                child.push(name.to_owned());
                if self.modules.contains_key(&child) {
                    return Some((child, Some(rest)));
                }
                let module = self.modules.get(from)?;
                let import =
                    module.imports.iter().find(|import| import.name.as_deref() == Some(name))?;
                // `use name;` of another crate, and `use name::name`.
                if import.path.segments.first().is_some_and(|first| first == name) {
                    return None;
                }
                let (module, is_module) =
                    self.find_within(from, &import.path.segments, depth + 1)?;
                Some((module, is_module.then_some(rest)))
            }
        }
    }
}

impl Module {
    /// Takes an item's head, a `use` or a path from the front; what is left.
    fn take<'a>(&mut self, tokens: &'a [TokenTree]) -> &'a [TokenTree] {
        const DEFINES: [&str; 8] =
            ["fn", "struct", "enum", "union", "trait", "type", "const", "static"];
        let Some(word) = ident(tokens.first()) else { return &tokens[1..] };
        if DEFINES.contains(&word.as_str())
            && let Some(name) = ident(tokens.get(1))
            && name != "fn"
        {
            self.items.insert(name);
            return &tokens[2..];
        }
        if word == "macro_rules" {
            self.items.extend(ident(tokens.get(2)));
            return tokens.get(3..).unwrap_or_default();
        }
        let is_public = word == "pub";
        let visibility = usize::from(is_public)
            + usize::from(is_public && matches!(tokens.get(1), Some(TokenTree::Group(_))));
        if ident(tokens.get(visibility)).is_some_and(|word| word == "use") {
            let end = tokens.iter().position(is_semicolon).unwrap_or(tokens.len());
            let mut imports = Vec::new();
            use_tree(&tokens[visibility + 1..end], &[], &mut imports);
            self.imports.extend(imports.into_iter().map(|(path, name)| Import {
                path,
                name,
                is_reexport: is_public,
            }));
            return &tokens[end..];
        }
        let (segments, len) = path(tokens);
        if segments.len() > 1 {
            self.paths.push(Mention { segments, line: line(&tokens[0]) });
        }
        &tokens[len..]
    }
}

/// The tokens of a text in Rust.
pub(crate) fn tokens(text: &str) -> anyhow::Result<Vec<TokenTree>> {
    let stream: TokenStream = text.parse().map_err(|error| anyhow!("{error}"))?;
    Ok(stream.into_iter().collect())
}

/// The item for tests that the tokens begin with, and what comes after it.
fn test_item(tokens: &[TokenTree]) -> Option<(&[TokenTree], &[TokenTree])> {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), rest @ ..] = tokens else {
        return None;
    };
    let text = attribute.stream().to_string().replace(' ', "");
    if hash.as_char() != '#' || !(text == "cfg(test)" || text.starts_with("cfg(all(test,")) {
        return None;
    }
    let is_end = |token: &TokenTree| {
        is_semicolon(token)
            || matches!(token, TokenTree::Group(group) if group.delimiter() == Delimiter::Brace)
    };
    let end = rest.iter().position(is_end)?;
    Some(rest.split_at(end + 1))
}

/// `mod name;`
fn declared_module(item: &[TokenTree]) -> Option<String> {
    let [.., module, name, end] = item else { return None };
    let is_module = ident(Some(module)).is_some_and(|word| word == "mod") && is_semicolon(end);
    ident(Some(name)).filter(|_| is_module)
}

fn inline_module(tokens: &[TokenTree]) -> Option<(String, Vec<TokenTree>, &[TokenTree])> {
    let [first, name, TokenTree::Group(body), rest @ ..] = tokens else { return None };
    let is_module = ident(Some(first)).is_some_and(|word| word == "mod");
    let name = ident(Some(name)).filter(|_| is_module && body.delimiter() == Delimiter::Brace)?;
    Some((name, body.stream().into_iter().collect(), rest))
}

/// The names that a `use` brings, each with its path.
fn use_tree(tokens: &[TokenTree], prefix: &[String], found: &mut Vec<(Mention, Option<String>)>) {
    let Some(first) = tokens.first() else { return };
    let (segments, len) = path(tokens);
    let mut whole = [prefix, &segments].concat();
    let mention = |segments: Vec<String>| Mention { segments, line: line(first) };
    // `path` leaves the `::` before `{` and `*`.
    let rest = &tokens[if segments.is_empty() { 0 } else { len }..];
    let rest = rest.strip_prefix_colons();
    match rest.first() {
        Some(TokenTree::Group(group)) => {
            let inside: Vec<TokenTree> = group.stream().into_iter().collect();
            for tree in inside.split(|token| is_punct(Some(token), ',')) {
                use_tree(tree, &whole, found);
            }
        }
        Some(TokenTree::Punct(star)) if star.as_char() == '*' => found.push((mention(whole), None)),
        other => {
            let alias = ident(other).filter(|word| word == "as").and_then(|_| ident(rest.get(1)));
            if whole.last().is_some_and(|last| last == "self") && whole.len() > 1 {
                whole.pop();
            }
            let name = alias.or_else(|| whole.last().cloned());
            found.push((mention(whole), name));
        }
    }
}

trait StripColons {
    fn strip_prefix_colons(&self) -> &Self;
}

impl StripColons for [TokenTree] {
    fn strip_prefix_colons(&self) -> &Self {
        if is_punct(self.first(), ':') && is_punct(self.get(1), ':') { &self[2..] } else { self }
    }
}

/// The segments of the path at the front, and how many tokens it has, at least one.
pub(crate) fn path(tokens: &[TokenTree]) -> (Vec<String>, usize) {
    let Some(first) = ident(tokens.first()) else { return (Vec::new(), 1) };
    let mut segments = vec![first];
    let mut len = 1;
    while is_punct(tokens.get(len), ':')
        && is_punct(tokens.get(len + 1), ':')
        && let Some(next) = ident(tokens.get(len + 2))
    {
        segments.push(next);
        len += 3;
    }
    (segments, len)
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn is_punct(token: Option<&TokenTree>, sign: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == sign)
}

fn is_semicolon(token: &TokenTree) -> bool {
    is_punct(Some(token), ';')
}

fn line(token: &TokenTree) -> usize {
    token.span().start().line
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn made(files: &[(&str, &str)]) -> Crate {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join("src").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        Crate::read(dir.path(), "src").unwrap()
    }

    fn found(of: &Crate, from: &str, path: &str) -> Option<(String, bool)> {
        let split = |path: &str| -> Vec<String> {
            path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (module, is_module) = of.find(&split(from), &split(path))?;
        Some((module.join("::"), is_module))
    }

    #[test]
    fn a_name_is_followed_to_the_file_that_defines_it() {
        let of = made(&[
            ("lib.rs", "pub mod a; mod b;"),
            (
                "a/mod.rs",
                "mod inner; pub use inner::{Thing, Other as Another}; pub use crate::b::*;",
            ),
            ("a/inner.rs", "pub struct Thing; pub struct Other; use super::super::b as moved;"),
            ("b.rs", "pub fn of_b() {} pub(crate) use crate::a::Thing; use std::fmt;"),
        ]);
        let inner = Some(("a::inner".to_owned(), false));
        assert_eq!(found(&of, "", "crate::a::Thing"), inner);
        assert_eq!(found(&of, "b", "super::a::Another"), inner);
        assert_eq!(found(&of, "b", "Thing::new"), inner);
        assert_eq!(found(&of, "", "crate::a::of_b"), Some(("b".to_owned(), false)));
        assert_eq!(found(&of, "a::inner", "moved::of_b"), Some(("b".to_owned(), false)));
        assert_eq!(found(&of, "a::inner", "super"), Some(("a".to_owned(), true)));
        assert_eq!(found(&of, "b", "fmt::Debug"), None);
        assert_eq!(found(&of, "b", "std::fmt"), None);
    }

    #[test]
    fn what_is_for_tests_only_and_what_is_text_names_nothing() {
        let of = made(&[
            ("lib.rs", "mod a; #[cfg(test)] mod of_tests;"),
            (
                "a.rs",
                "/// crate::b::X\nfn f() { let s = \"crate::c\"; m!(crate::d::Y); }\n\
                      #[cfg(test)] mod tests { use crate::e::Z; }",
            ),
            ("of_tests.rs", "use crate::f::Z;"),
        ]);
        let written: Vec<&[String]> = of
            .modules
            .values()
            .flat_map(|module| {
                module.imports.iter().map(|import| &import.path).chain(&module.paths)
            })
            .map(|mention| mention.segments.as_slice())
            .collect();
        assert_eq!(written, [["crate", "d", "Y"]]);
    }
}

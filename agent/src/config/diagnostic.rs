//! Diagnostics of a configuration file, with which the operator can fix it without a manual.

use std::{fmt, ops::Range, sync::LazyLock};

use toml::{
    Table,
    de::{DeTable, DeValue},
};

use super::Config;

/// Least similarity at which a name is taken for a typing error of another (Jaro-Winkler, 1 = equal).
const NEAR: f64 = 0.8;

/// A problem and its place in the file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Diagnostic {
    /// Line of the file, from 1.
    pub line: usize,
    /// The key with its section, as in `agentx.address`; `None`: the text is no TOML.
    pub key: Option<String>,
    /// What is wrong, what is allowed, and a similar key.
    pub problem: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.problem)
    }
}

impl Diagnostic {
    fn syntax(text: &str, message: &str, span: Option<Range<usize>>) -> Self {
        let twice = (message == "duplicate key").then(|| text.get(span.clone()?)).flatten();
        let line = line_of(text, span);
        if let Some(key) = twice {
            return Self { line, key: None, problem: format!("{} is there twice", key.trim()) };
        }
        if let Some(key) = key_without_value(text, line) {
            let default = leaves().find(|leaf| leaf.key == key).map_or_else(
                || "take the line out".to_owned(),
                |leaf| format!("the default: {key} = {}", leaf.default),
            );
            let problem = format!("{key} has no value; write one, or {default}");
            return Self { line, key: None, problem };
        }
        let message = one_line(message);
        let problem = format!(
            "no TOML: {message}; a line is [SECTION], KEY = VALUE or # COMMENT, and text is in quotation marks"
        );
        Self { line, key: None, problem }
    }

    /// A diagnostic for the value at `span`.
    pub(super) fn of_value(text: &str, message: &str, span: Option<Range<usize>>) -> Self {
        let key = span.as_ref().and_then(|span| {
            let document = DeTable::parse(text).ok()?;
            path_to(document.get_ref(), span)
        });
        Self { line: line_of(text, span), key, problem: one_line(message) }
    }

    /// A diagnostic for `key`, written `section.key`, whose value contradicts others.
    pub(super) fn of_key(text: &str, key: &str, problem: &str) -> Self {
        let span = DeTable::parse(text).ok().and_then(|document| {
            let (section, leaf) = key.split_once('.')?;
            let section = document.get_ref().get(section)?.get_ref().as_table()?;
            section.get_key_value(leaf).map(|(name, _)| name.span())
        });
        Self { line: line_of(text, span), key: Some(key.to_owned()), problem: problem.to_owned() }
    }
}

/// Checks that every key exists. Runs before the values are checked.
///
/// # Errors
///
/// The first unknown key.
pub(super) fn unknown_key(text: &str) -> Result<(), Diagnostic> {
    let document =
        DeTable::parse(text).map_err(|e| Diagnostic::syntax(text, e.message(), e.span()))?;
    let mut unknown = Vec::new();
    for (name, value) in document.get_ref() {
        let section = name.get_ref().as_ref();
        match (KNOWN.get(section).and_then(toml::Value::as_table), value.get_ref()) {
            (Some(known), DeValue::Table(keys)) => {
                unknown.extend(
                    keys.keys()
                        .filter(|key| !known.contains_key(key.get_ref().as_ref()))
                        .map(|key| (key.span(), Unknown::Key(known, section, key.get_ref()))),
                );
            }
            (Some(_), _) => unknown.push((name.span(), Unknown::NotASection(section))),
            (None, _) => unknown.push((name.span(), Unknown::Section(section))),
        }
    }
    match unknown.into_iter().min_by_key(|(span, _)| span.start) {
        Some((span, unknown)) => Err(Diagnostic {
            line: line_of(text, Some(span)),
            key: Some(unknown.path()),
            problem: unknown.problem(),
        }),
        None => Ok(()),
    }
}

enum Unknown<'a> {
    Section(&'a str),
    NotASection(&'a str),
    Key(&'a Table, &'a str, &'a str),
}

impl Unknown<'_> {
    fn path(&self) -> String {
        match self {
            Self::Section(name) | Self::NotASection(name) => (*name).to_owned(),
            Self::Key(_, section, key) => format!("{section}.{key}"),
        }
    }

    fn problem(&self) -> String {
        match self {
            Self::NotASection(name) => {
                format!("this is a section: write [{name}] and its keys below")
            }
            Self::Section(name) => {
                let meant =
                    nearest(name, KNOWN.keys().map(|known| (known.as_str(), known.clone())))
                        .map(|section| format!("[{section}]"))
                        .or_else(|| nearest_leaf(name));
                format!("no such section; there are {}{}", list(&KNOWN), did_you_mean(meant))
            }
            Self::Key(known, section, key) => {
                let meant = nearest(key, known.keys().map(|known| (known.as_str(), known.clone())))
                    .or_else(|| nearest_leaf(key));
                format!("no such key; [{section}] has {}{}", list(known), did_you_mean(meant))
            }
        }
    }
}

/// The existing sections and keys, from the types.
static KNOWN: LazyLock<Table> = LazyLock::new(|| {
    #[expect(
        clippy::expect_used,
        reason = "numbers, truth values and strings in two levels of maps"
    )]
    Table::try_from(Config::default()).expect("the defaults are TOML")
});

/// A key of a section.
struct Leaf {
    key: &'static str,
    /// With its section.
    path: String,
    default: &'static toml::Value,
}

/// Every key.
fn leaves() -> impl Iterator<Item = Leaf> {
    let sections = KNOWN.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)));
    sections.flat_map(|(section, keys)| {
        let leaf = move |(key, default): (&'static String, _)| Leaf {
            key,
            path: format!("{section}.{key}"),
            default,
        };
        keys.iter().map(leaf)
    })
}

/// The existing key, with its section, that is most like `wrong`.
fn nearest_leaf(wrong: &str) -> Option<String> {
    nearest(wrong, leaves().map(|leaf| (leaf.key, leaf.path)))
}

/// The key of a line that ends where its value should begin.
fn key_without_value(text: &str, line: usize) -> Option<&str> {
    let line = text.lines().nth(line - 1)?;
    let code = line.split_once('#').map_or(line, |(code, _)| code);
    let (key, value) = code.split_once('=').unwrap_or((code, ""));
    let key = key.trim();
    let is_key = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    (value.trim().is_empty() && !key.is_empty() && key.chars().all(is_key)).then_some(key)
}

fn nearest<'a>(wrong: &str, known: impl Iterator<Item = (&'a str, String)>) -> Option<String> {
    let wrong = wrong.to_lowercase();
    known
        .map(|(name, shown)| (strsim::jaro_winkler(&wrong, name), shown))
        .filter(|(likeness, _)| *likeness >= NEAR)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, shown)| shown)
}

fn did_you_mean(meant: Option<String>) -> String {
    meant.map(|meant| format!(". Did you mean {meant}?")).unwrap_or_default()
}

fn list(known: &Table) -> String {
    known.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// The innermost key whose value contains `span`.
fn path_to(table: &DeTable<'_>, span: &Range<usize>) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let inner = value.get_ref().as_table().and_then(|table| path_to(table, span));
        let here = value.span().start <= span.start && span.end <= value.span().end;
        match inner {
            Some(inner) => Some(format!("{}.{inner}", name.get_ref())),
            None => here.then(|| name.get_ref().to_string()),
        }
    })
}

fn line_of(text: &str, span: Option<Range<usize>>) -> usize {
    let before =
        text.as_bytes().get(..span.map_or(0, |span| span.start)).unwrap_or(text.as_bytes());
    before.iter().filter(|&&byte| byte == b'\n').count() + 1
}

fn one_line(message: &str) -> String {
    message.trim_end().replace('\n', "; ")
}

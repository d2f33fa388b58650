//! Each key of the configuration is in all its places: the struct, the file that is shipped, the operator's page. That
//! defaults agree, the agent's own tests check.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::Context as _;
use proc_macro2::TokenTree;

use super::{findings::Findings, source::tokens};

const STRUCT: &str = "agent/src/config/mod.rs";
const SHIPPED: &str = "agent/etc/kvmeter.toml";
const PAGE: &str = "agent/docs/configuration.md";

pub(crate) fn check(root: &Path, findings: &mut Findings) -> anyhow::Result<()> {
    let read = |file: &str| fs::read_to_string(root.join(file)).with_context(|| file.to_owned());
    let shipped: toml::Table = read(SHIPPED)?.parse().context(SHIPPED)?;
    let sections = shipped.iter().filter_map(|(name, keys)| Some((name, keys.as_table()?)));
    let shipped: BTreeSet<String> = sections
        .flat_map(|(section, keys)| keys.keys().map(move |key| format!("{section}.{key}")))
        .collect();
    let page = read(PAGE)?;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> =
        rows.filter(|row| row.contains('.')).map(str::to_owned).collect();
    let known = keys(&tokens(&read(STRUCT)?)?);
    for (place, has) in [(STRUCT, &known), (SHIPPED, &shipped), (PAGE, &documented)] {
        for key in known.union(&shipped).chain(&documented) {
            if !has.contains(key) {
                findings.add(place, format!("does not have the key {key}, which others of {STRUCT}, {SHIPPED} and {PAGE} have"));
            }
        }
    }
    Ok(())
}

/// `section.key` of each field of the structs that are fields of `Config`.
fn keys(tokens: &[TokenTree]) -> BTreeSet<String> {
    let structs: Vec<(String, Vec<(String, String)>)> = tokens
        .windows(3)
        .filter_map(|window| match window {
            [TokenTree::Ident(word), TokenTree::Ident(name), TokenTree::Group(body)]
                if word == "struct" =>
            {
                let body: Vec<TokenTree> = body.stream().into_iter().collect();
                Some((name.to_string(), fields(&body)))
            }
            _ => None,
        })
        .collect();
    let of = |name: &str| structs.iter().find(|(its, _)| its == name).map(|(_, fields)| fields);
    let sections = of("Config").into_iter().flatten();
    sections
        .flat_map(|(section, kind)| {
            of(kind).into_iter().flatten().map(move |(key, _)| format!("{section}.{key}"))
        })
        .collect()
}

/// Each field's key and the first word of its type: the name, or what serde calls it instead.
fn fields(body: &[TokenTree]) -> Vec<(String, String)> {
    let mut renamed = None;
    let mut fields = Vec::new();
    for window in body.windows(4) {
        match window {
            [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] if hash.as_char() == '#' => {
                let text = attribute.stream().to_string();
                let name = text.split("rename = \"").nth(1).and_then(|rest| rest.split('"').next());
                renamed = name.map(str::to_owned).or(renamed);
            }
            [
                TokenTree::Ident(public),
                TokenTree::Ident(name),
                TokenTree::Punct(colon),
                TokenTree::Ident(kind),
            ] if public == "pub" && colon.as_char() == ':' => {
                fields.push((renamed.take().unwrap_or_else(|| name.to_string()), kind.to_string()));
            }
            _ => {}
        }
    }
    fields
}

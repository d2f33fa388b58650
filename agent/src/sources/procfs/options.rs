//! QEMU's option grammar: `-option key=value,…`, and the same in JSON.

use serde_json::Value as Json;

/// Names and values in the order in which they are told; a value alone has no name.
pub(super) type Fields = Vec<(String, String)>;

/// Options with one or two dashes, and what belongs to each: the rest after `=`, or the next argument.
pub(super) fn options<'a>(arguments: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let name = |argument: &'a str| {
        argument
            .strip_prefix("--")
            .or_else(|| argument.strip_prefix('-'))
            .filter(|name| !name.is_empty())
    };
    let mut found = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        let Some(option) = name(argument) else { continue };
        found.push(match option.split_once('=') {
            Some((option, value)) => (option, value),
            None => {
                let next = arguments.get(i + 1).copied().unwrap_or_default();
                (option, if next.starts_with('-') { "" } else { next })
            }
        });
    }
    found
}

/// `a,key=b,,c` is `a` without a key and `b,c` with one: a doubled comma stands for a comma.
pub(super) fn fields(value: &str) -> Fields {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(char) = chars.next() {
        if char != ',' {
            if let Some(part) = parts.last_mut() {
                part.push(char);
            }
        } else if chars.next_if_eq(&',').is_some() {
            if let Some(part) = parts.last_mut() {
                part.push(',');
            }
        } else {
            parts.push(String::new());
        }
    }
    parts
        .into_iter()
        .map(|part| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (String::new(), part),
        })
        .collect()
}

/// A field by its whole name.
pub(super) fn get<'a>(fields: &'a Fields, key: &str) -> Option<&'a str> {
    fields.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
}

/// An option in JSON, its members flattened: `{"file":{"filename":"x"}}` is `file.filename=x`.
pub(super) fn object(value: &str) -> Option<Fields> {
    fn flatten(prefix: &str, value: &Json, depth: u32, into: &mut Fields) {
        match value {
            Json::Object(members) if depth < 8 => {
                for (name, value) in members {
                    let name =
                        if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                    flatten(&name, value, depth + 1, into);
                }
            }
            Json::String(text) => into.push((prefix.to_owned(), text.clone())),
            Json::Bool(true) => into.push((prefix.to_owned(), "on".to_owned())),
            Json::Bool(false) => into.push((prefix.to_owned(), "off".to_owned())),
            Json::Number(number) => into.push((prefix.to_owned(), number.to_string())),
            Json::Null => into.push((prefix.to_owned(), String::new())),
            _ => {}
        }
    }
    if !value.starts_with('{') {
        return None;
    }
    let mut told = Fields::new();
    flatten("", &serde_json::from_str(value).ok()?, 0, &mut told);
    Some(told)
}

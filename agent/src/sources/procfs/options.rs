//! QEMU's option grammar: `-option value`, where a value is `key=value,…` or the same as a JSON object. Accepts any text.

use serde_json::Value as Json;

/// Deepest nesting of JSON objects that is read; what lies deeper is left out.
const MAX_JSON_DEPTH: u32 = 8;

/// Splits arguments into options (one or two dashes) and their values: the text after `=`, or the next argument.
pub(super) fn options<'a>(arguments: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let name = |argument: &'a str| {
        argument
            .strip_prefix("--")
            .or_else(|| argument.strip_prefix('-'))
            .filter(|name| !name.is_empty())
    };
    let mut options = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        let Some(option) = name(argument) else { continue };
        options.push(match option.split_once('=') {
            Some((option, value)) => (option, value),
            None => {
                let next = arguments.get(i + 1).copied().unwrap_or_default();
                (option, if next.starts_with('-') { "" } else { next })
            }
        });
    }
    options
}

/// The fields of an option's value, in the order of the command line. A value without a key has the empty key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Parses `a,key=b,,c`: the value `a` without a key, and `b,c` for `key`. A doubled comma is a literal comma.
    pub(super) fn parse(value: &str) -> Self {
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
        let field = |part: String| match part.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.to_owned()),
            None => (String::new(), part),
        };
        Self(parts.into_iter().map(field).collect())
    }

    /// Parses a JSON object and flattens its members: `{"file":{"filename":"x"}}` is `file.filename=x`. `None`: the value
    /// is not a JSON object.
    pub(super) fn parse_json(value: &str) -> Option<Self> {
        if !value.starts_with('{') {
            return None;
        }
        let mut fields = Vec::new();
        flatten("", &serde_json::from_str(value).ok()?, 0, &mut fields);
        Some(Self(fields))
    }

    /// The value of the first field with this key.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The value of the first field, with or without a key.
    pub(super) fn first(&self) -> &str {
        self.0.first().map_or("", |(_, value)| value)
    }

    /// The value of the first field, if it has no key: QEMU gives it to the option's implied key.
    pub(super) fn implied(&self) -> Option<&str> {
        self.0.first().filter(|(key, _)| key.is_empty()).map(|(_, value)| value.as_str())
    }

    /// Whether a key begins with `prefix`.
    pub(super) fn has_prefix(&self, prefix: &str) -> bool {
        self.0.iter().any(|(key, _)| key.starts_with(prefix))
    }
}

fn flatten(prefix: &str, value: &Json, depth: u32, into: &mut Vec<(String, String)>) {
    match value {
        Json::Object(members) if depth < MAX_JSON_DEPTH => {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_with_their_values() {
        let arguments = ["-S", "-m", "4096", "--id=vm-1", "-", "--api-sock", "/run/x"];
        let expected = [("S", ""), ("m", "4096"), ("id", "vm-1"), ("api-sock", "/run/x")];
        assert_eq!(options(&arguments), expected);
    }

    #[test]
    fn a_doubled_comma_is_a_comma() {
        let fields = Fields::parse("guest=web,,1,debug-threads=on,a=b=c");
        assert_eq!((fields.get("guest"), fields.get("a")), (Some("web,1"), Some("b=c")));
        assert_eq!((fields.first(), fields.implied()), ("web,1", None));
        assert_eq!(Fields::parse("4096,maxmem=8G").implied(), Some("4096"));
        assert_eq!(Fields::parse("").implied(), Some(""));
    }

    #[test]
    fn json_is_flattened() {
        let fields = Fields::parse_json(
            r#"{"driver":"raw","file":{"filename":"/i/a","read-only":true,"size":7},"backing":null,"list":[1]}"#,
        );
        let fields = fields.unwrap();
        assert_eq!(fields.get("file.filename"), Some("/i/a"));
        assert_eq!(
            (fields.get("file.read-only"), fields.get("file.size")),
            (Some("on"), Some("7"))
        );
        assert_eq!((fields.get("backing"), fields.get("list")), (Some(""), None));
        assert!(fields.has_prefix("file.") && !fields.has_prefix("x"));
        assert_eq!(Fields::parse_json("file=/i/a"), None);
        assert_eq!(Fields::parse_json("{"), None);
    }
}

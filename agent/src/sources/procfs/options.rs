//! The options of a VMM: `-option value`, where a value is `key=value,…` or the same as a JSON object. Accepts any text.

use std::collections::BTreeMap;

use serde_json::Value as Json;

/// Deepest nesting of members that is read, in JSON and in dotted keys; what lies deeper is left out. Chains in use are
/// shorter, and dropping members takes stack.
const MAX_DEPTH: usize = 64;

/// The name of an option, behind one or two dashes; `None`: the argument is no option.
pub(super) fn name_of(argument: &str) -> Option<&str> {
    let rest = argument.strip_prefix('-')?;
    Some(rest.strip_prefix('-').unwrap_or(rest))
}

/// Splits arguments into options (one or two dashes) and their values: the text after `=`, or the next argument.
pub(super) fn options<'a>(arguments: &[&'a str]) -> Vec<(&'a str, &'a str)> {
    let mut options = Vec::new();
    for (i, argument) in arguments.iter().enumerate() {
        let Some(option) = name_of(argument).filter(|name| !name.is_empty()) else { continue };
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

/// The fields of an option's value, or of a member in it. `file.filename=x` and `{"file":{"filename":"x"}}` are the same:
/// a member `file` that has a member `filename`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Fields {
    /// Its own value; of a whole option the first field, if that has no key. QEMU gives it to the option's implied key.
    text: Option<String>,
    members: BTreeMap<String, Self>,
}

impl Fields {
    /// Parses `a,key=b,,c`: the implied value `a`, and `b,c` for `key`. A doubled comma is a literal comma. Of fields with one
    /// key the last counts; a further field without a key is a switch that is on, or off if it begins with `no`.
    pub(super) fn parse(value: &str) -> Self {
        let mut found = Self::default();
        for (at, part) in split(value).into_iter().enumerate() {
            match part.split_once('=') {
                Some((key, value)) => found.set(key, value),
                None if at == 0 => found.text = Some(part),
                None => match part.strip_prefix("no") {
                    Some(key) => found.set(key, "off"),
                    None => found.set(&part, "on"),
                },
            }
        }
        found
    }

    /// Parses a JSON object. `None`: the value is not a JSON object.
    pub(super) fn parse_json(value: &str) -> Option<Self> {
        if !value.starts_with('{') {
            return None;
        }
        let mut found = Self::default();
        found.fill(&serde_json::from_str(value).ok()?, 0);
        Some(found)
    }

    /// Parses a value in whichever of both ways it is written.
    pub(super) fn parse_any(value: &str) -> Self {
        Self::parse_json(value).unwrap_or_else(|| Self::parse(value))
    }

    /// Sets the value of a key, which may have dots.
    pub(super) fn set(&mut self, key: &str, value: &str) {
        if let Some(member) = self.make(key, 0) {
            member.text = Some(value.to_owned());
        }
    }

    /// Removes the value of a key without dots, and returns it. Its members stay.
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.members.get_mut(key)?.text.take()
    }

    /// Adds what `other` has and these fields lack.
    pub(super) fn complete(&mut self, other: Self) {
        if self.text.is_none() {
            self.text = other.text;
        }
        for (key, member) in other.members {
            self.members.entry(key).or_default().complete(member);
        }
    }

    /// The value of a key, which may have dots.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        key.split('.').try_fold(self, |fields, name| fields.members.get(name))?.text.as_deref()
    }

    /// The member `key`, with a value or fields.
    pub(super) fn child(&self, key: &str) -> Option<&Self> {
        self.members.get(key)
    }

    /// The fields that the member `key` has itself.
    pub(super) fn member(&self, key: &str) -> Option<&Self> {
        self.members.get(key).filter(|member| !member.members.is_empty())
    }

    /// The members, by name.
    pub(super) fn members(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.members.iter().map(|(name, member)| (name.as_str(), member))
    }

    /// The same, to be changed.
    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Self> {
        self.members.values_mut()
    }

    /// The value of the first field, if it has no key.
    pub(super) fn implied(&self) -> Option<&str> {
        self.text.as_deref()
    }

    /// The value of `key`, which the first field has where no key is given.
    pub(super) fn get_or_implied(&self, key: &str) -> Option<&str> {
        self.get(key).or_else(|| self.implied())
    }

    /// The member at a key, which is `depth` members below an option. `None`: too deep.
    fn make(&mut self, key: &str, depth: usize) -> Option<&mut Self> {
        if depth + key.split('.').take(MAX_DEPTH + 1).count() > MAX_DEPTH {
            return None;
        }
        let into = |fields, name: &str| -> &mut Self {
            let fields: &mut Self = fields;
            fields.members.entry(name.to_owned()).or_default()
        };
        Some(key.split('.').fold(self, into))
    }

    fn fill(&mut self, value: &Json, depth: usize) {
        match value {
            Json::Object(members) => {
                for (name, value) in members {
                    if let Some(member) = self.make(name, depth) {
                        member.fill(value, depth + name.split('.').count());
                    }
                }
            }
            Json::Array(items) => {
                for (at, value) in items.iter().enumerate() {
                    if let Some(member) = self.make(&at.to_string(), depth) {
                        member.fill(value, depth + 1);
                    }
                }
            }
            Json::String(text) => self.text = Some(text.clone()),
            Json::Bool(true) => self.text = Some("on".to_owned()),
            Json::Bool(false) => self.text = Some("off".to_owned()),
            Json::Number(number) => self.text = Some(number.to_string()),
            Json::Null => self.text = Some(String::new()),
        }
    }
}

/// Whether a switch is on.
pub(super) fn is_on(value: Option<&str>) -> bool {
    matches!(value, Some("on" | "yes" | "true" | "y"))
}

/// The parts between single commas, with doubled commas undone.
fn split(value: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = value.chars().peekable();
    while let Some(char) = chars.next() {
        let is_end = char == ',' && chars.next_if_eq(&',').is_none();
        match parts.last_mut() {
            Some(part) if !is_end => part.push(char),
            _ => parts.push(String::new()),
        }
    }
    parts
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
        assert_eq!(fields.implied(), None);
        assert_eq!(Fields::parse("4096,maxmem=8G").implied(), Some("4096"));
        assert_eq!(Fields::parse("").implied(), Some(""));
    }

    #[test]
    fn the_last_of_a_key_counts_and_a_bare_word_is_a_switch() {
        let fields = Fields::parse("file=a,file=b,readonly,nowait");
        let of = |key| fields.get(key);
        assert_eq!((of("file"), of("readonly"), of("wait")), (Some("b"), Some("on"), Some("off")));
    }

    #[test]
    fn members_are_the_same_in_json_and_in_dotted_keys() {
        let json = Fields::parse_json(
            r#"{"driver":"raw","file":{"filename":"/i/a","read-only":true,"size":7},"backing":null,"list":[1,{"a":"b"}]}"#,
        );
        let dotted = Fields::parse(
            "driver=raw,file.filename=/i/a,file.read-only=on,file.size=7,backing=,list.0=1,list.1.a=b",
        );
        assert_eq!(json, Some(dotted));
        let fields = json.unwrap();
        assert_eq!(fields.get("file.filename"), Some("/i/a"));
        assert_eq!(fields.member("file").unwrap().get("size"), Some("7"));
        assert_eq!((fields.get("backing"), fields.get("list.1.a")), (Some(""), Some("b")));
        assert!(fields.member("backing").is_none());
        assert_eq!(Fields::parse_json("file=/i/a"), None);
        assert_eq!(Fields::parse_json("{"), None);
    }

    #[test]
    fn what_lies_too_deep_is_left_out() {
        let key = vec!["a"; 100_000].join(".");
        assert_eq!(Fields::parse(&format!("{key}=1")), Fields::default());
        let json = r#"{"a":"#.repeat(100) + "1" + &"}".repeat(100);
        assert_eq!(Fields::parse_json(&json).unwrap().get(&vec!["a"; 100].join(".")), None);
    }
}

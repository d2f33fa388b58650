//! Parses the text of a file that QEMU is given with `-readconfig` (`qemu_config_foreach()` of its `util/qemu-config.c`):
//! groups of `key = "value"`. Accepts any bytes.

use super::super::options::Fields;

/// Longest line in bytes, as QEMU has it.
const MAX_LINE: usize = 1023;

/// A group: its name, and its fields with its id.
pub(super) type Group = (String, Fields);

/// The text is not a file that QEMU takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {0} is not understood")]
pub(super) struct Malformed(usize);

/// Parses the groups, in the order of the file.
pub(super) fn parse(text: &[u8]) -> Result<Vec<Group>, Malformed> {
    let mut groups: Vec<Group> = Vec::new();
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let malformed = Malformed(at + 1);
        if line.len() > MAX_LINE {
            return Err(malformed);
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            groups.push(group(head).ok_or(malformed)?);
        } else {
            let (key, value) = field(line).ok_or(malformed)?;
            groups.last_mut().ok_or(malformed)?.1.set(key, value);
        }
    }
    Ok(groups)
}

/// What follows the bracket of `[group]` or `[group "id"]`.
fn group(head: &str) -> Option<Group> {
    let (head, _) = head.rsplit_once(']')?;
    let (name, id) = match head.split_once(char::is_whitespace) {
        Some((name, id)) => (name, Some(id.trim().strip_prefix('"')?.split('"').next()?)),
        None => (head, None),
    };
    let mut fields = Fields::default();
    if let Some(id) = id {
        fields.set("id", id);
    }
    (!name.is_empty()).then(|| (name.to_owned(), fields))
}

/// `key = "value"`, with or without spaces.
fn field(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.split_once('=')?;
    let value = value.trim_start().strip_prefix('"')?;
    let key = key.trim_end();
    (!key.is_empty() && !key.contains(char::is_whitespace))
        .then(|| (key, value.split('"').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_with_and_without_an_id() {
        let text = b"# a comment\n\n[machine]\n  type = \"q35\"\n accel = \"kvm\"\n[drive \"d 0\"]\nfile = \"/i/a = b,c\"\n\
            file.locking = \"off\"\nempty = \"\"\n[memory]";
        let groups = parse(text).unwrap();
        let names: Vec<_> = groups.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["machine", "drive", "memory"]);
        assert_eq!((groups[0].1.get("type"), groups[0].1.get("accel")), (Some("q35"), Some("kvm")));
        let drive = &groups[1].1;
        assert_eq!((drive.get("id"), drive.get("file")), (Some("d 0"), Some("/i/a = b,c")));
        assert_eq!((drive.get("file.locking"), drive.get("empty")), (Some("off"), Some("")));
        assert_eq!(parse(b""), Ok(Vec::new()));
    }

    #[test]
    fn a_text_that_qemu_does_not_take_is_an_error() {
        for (text, line) in [
            (&b"size = \"1G\""[..], 1),
            (b"[memory]\nsize = 1G", 2),
            (b"[memory]\nsize", 2),
            (b"[memory", 1),
            (b"[]", 1),
            (b"[drive d0]", 1),
            (b"[a]\n\xff\xfe\0", 2),
        ] {
            assert_eq!(parse(text), Err(Malformed(line)), "{}", String::from_utf8_lossy(text));
        }
        assert!(parse(&[b"[a]\nb = \"".as_slice(), &[b'x'; MAX_LINE]].concat()).is_err());
    }
}

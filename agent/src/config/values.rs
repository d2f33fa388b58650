//! Types of values, and how they are written in the file.

use std::{
    fmt,
    marker::PhantomData,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{
    Deserialize, Serializer,
    de::{Deserializer, Error, Unexpected, Visitor},
};

use crate::{agentx::Address, snmp::Oid};

/// A type that is written as a string.
pub(super) trait AsText: fmt::Display + FromStr {
    /// What is allowed; follows "expected" in a message.
    const ALLOWED: &'static str;
}

impl AsText for Address {
    const ALLOWED: &'static str = "\"unix:/PATH\" of at most 107 bytes, or \"tcp:HOST:PORT\"";
}

impl AsText for Oid {
    const ALLOWED: &'static str = "an object identifier such as \"1.3.6.1.4.1.8072\"";
}

/// For `#[serde(with)]` on an [`AsText`].
pub(super) mod text {
    use super::{AsText, Deserializer, PhantomData, Serializer, TextVisitor};

    pub(crate) fn serialize<T: AsText, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub(crate) fn deserialize<'de, T: AsText, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        from.deserialize_str(TextVisitor(PhantomData))
    }
}

struct TextVisitor<T>(PhantomData<T>);

impl<T: AsText> Visitor<'_> for TextVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::ALLOWED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// A whole number of `unit` from `MIN` to `MAX`.
struct Bounded<const MIN: u64, const MAX: u64> {
    unit: &'static str,
}

impl<const MIN: u64, const MAX: u64> Visitor<'_> for Bounded<MIN, MAX> {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number of {} from {MIN} to {MAX}", self.unit)
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<u64, E> {
        match u64::try_from(number) {
            Ok(number) if (MIN..=MAX).contains(&number) => Ok(number),
            _ => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }
}

/// For `#[serde(with)]`: a [`Duration`] that is written in seconds.
pub(super) struct Seconds<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(value.as_secs())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_i64(Bounded::<MIN, MAX> { unit: "seconds" }).map(Duration::from_secs)
    }
}

/// For `#[serde(with)]`: a [`Duration`] that is written in seconds; `None` is 0.
pub(super) struct SecondsOrNever<const MAX: u64>;

impl<const MAX: u64> SecondsOrNever<MAX> {
    pub(super) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        Seconds::<0, MAX>::serialize(&value.unwrap_or_default(), to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let pause = Seconds::<0, MAX>::deserialize(from)?;
        Ok((!pause.is_zero()).then_some(pause))
    }
}

/// For `#[serde(with)]`: a number of records.
pub(super) struct Records<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Records<MIN, MAX> {
    pub(super) fn serialize<S: Serializer>(value: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u32(*value)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        let number = from.deserialize_i64(Bounded::<MIN, MAX> { unit: "records" })?;
        u32::try_from(number).map_err(D::Error::custom)
    }
}

/// For `#[serde(with)]`: a [`Duration`] that is written in milliseconds.
pub(super) struct Milliseconds<const MIN: u64, const MAX: u64>;

impl<const MIN: u64, const MAX: u64> Milliseconds<MIN, MAX> {
    pub(super) fn serialize<S: Serializer>(value: &Duration, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_i64(Bounded::<MIN, MAX> { unit: "milliseconds" })
            .map(Duration::from_millis)
    }
}

/// For `#[serde(with)]`: an absolute path without `..`, of at most `MAX` bytes.
pub(super) struct Directory<const MAX: usize>;

impl<const MAX: usize> Directory<MAX> {
    pub(super) fn serialize<S: Serializer>(value: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&value.display())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        from.deserialize_str(Self)
    }
}

impl<const MAX: usize> Visitor<'_> for Directory<MAX> {
    type Value = PathBuf;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an absolute path below \"/\" without \"..\", of at most {MAX} bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<PathBuf, E> {
        let path = Path::new(text);
        let below_root = path.is_absolute() && path.parent().is_some();
        let climbs = path.components().any(|part| part == Component::ParentDir);
        if below_root && !climbs && text.len() <= MAX && !text.contains('\0') {
            Ok(path.to_owned())
        } else {
            Err(E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

/// For `#[serde(with)]`: a URI, a list of URIs, or nothing for `""`.
pub(super) struct LibvirtUris;

impl LibvirtUris {
    const ALLOWED: &'static str =
        "a libvirt URI such as \"qemu:///system\", a list of up to 16 of them, or \"\" for none";
    const MAX: usize = 16;

    pub(super) fn serialize<S: Serializer>(value: &[String], to: S) -> Result<S::Ok, S::Error> {
        match value {
            [] => to.serialize_str(""),
            [uri] => to.serialize_str(uri),
            uris => to.collect_seq(uris),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum OneOrMore {
            One(String),
            More(Vec<String>),
        }
        let refused = |text: &str| D::Error::invalid_value(Unexpected::Str(text), &Self::ALLOWED);
        let uris = match OneOrMore::deserialize(from) {
            Ok(OneOrMore::One(uri)) if uri.is_empty() => Vec::new(),
            Ok(OneOrMore::One(uri)) => vec![uri],
            Ok(OneOrMore::More(uris)) => uris,
            Err(_) => return Err(D::Error::custom(format!("expected {}", Self::ALLOWED))),
        };
        if let Some(uri) = uris.iter().find(|uri| !is_libvirt_uri(uri)) {
            return Err(refused(uri));
        }
        if let Some(uri) =
            (1..uris.len()).find_map(|at| uris[..at].iter().find(|it| **it == uris[at]))
        {
            return Err(D::Error::custom(format!("{uri:?} is in the list twice")));
        }
        if uris.len() > Self::MAX {
            return Err(D::Error::invalid_length(uris.len(), &Self::ALLOWED));
        }
        Ok(uris)
    }
}

fn is_libvirt_uri(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
    };
    text.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) && !text.contains('\0')
}

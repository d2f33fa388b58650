//! A few objects that do not change, for tests of the protocol.

use std::{
    collections::BTreeMap,
    ops::Bound::{Excluded, Included, Unbounded},
};

use kvmeter::{
    agentx::{Lookup, Objects},
    snmp::{Oid, OwnedValue, Value},
};

/// Instances in their order. An object is what its instances have in common but for the last part.
#[derive(Clone, Debug, Default)]
pub struct FixedObjects(pub BTreeMap<Oid, OwnedValue>);

impl FixedObjects {
    /// One scalar of each type that is served, and a table of two columns with four rows.
    pub fn small() -> Self {
        let mut objects = Self::default();
        let root = "1.3.6.1.2.1.236";
        let mut add = |suffix: &str, value| {
            objects.0.insert(format!("{root}.{suffix}").parse().unwrap(), value);
        };
        add("1.1.0", OwnedValue::OctetString(b"KVM".to_vec()));
        add("1.2.0", OwnedValue::OctetString(vec![0, 0xff, 0x80]));
        add("1.3.0", OwnedValue::ObjectIdentifier(Oid::of(&[1, 3, 6, 1, 4, 1, 8072])));
        add("1.4.0", OwnedValue::TimeTicks(u32::MAX));
        add("1.5.0", OwnedValue::Integer(-1));
        for row in [1, 2, 7, 4_294_967_295_u32] {
            add(
                &format!("1.6.1.2.{row}"),
                OwnedValue::OctetString(format!("vm{row}").into_bytes()),
            );
            add(&format!("1.6.1.3.{row}"), OwnedValue::Counter64(u64::MAX - u64::from(row)));
        }
        objects
    }
}

impl Objects for FixedObjects {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        if let Some(value) = self.0.get(name) {
            return Lookup::Found(value.as_value());
        }
        let same_object = |instance: &Oid| {
            let (_, object) = instance.parts().split_last().unwrap();
            name.strip_prefix(object).is_some_and(|index| !index.is_empty())
        };
        if self.0.keys().any(same_object) { Lookup::NoSuchInstance } else { Lookup::NoSuchObject }
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        let from = if include { Included(start) } else { Excluded(start) };
        let (name, value) = self.0.range((from, Unbounded)).next()?;
        (end.is_empty() || name < end).then(|| (*name, value.as_value()))
    }
}

//! Get and get-next over the schema.

use std::{fmt, ops::Deref, sync::Arc};

use crate::{
    agentx::{Lookup, Objects, SetError, SetFailed},
    counters::{Readings, SlowValues},
    inventory::Inventory,
    snmp::{Oid, Value},
    values::Moment,
};

use super::{
    notification::{OFF, Switches},
    rows::{MAX_INDEX_LEN, Row, Scalar, lower_bound, successor},
    schema::{Getter, LEAVES, Leaf, VM_MIB, VM_MIB_PARTS},
};

/// VM-MIB over one state of the inventory. Made anew for each request, it costs two pointers. It answers
/// from memory, allocates nothing and takes no lock.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub(super) inventory: &'a Inventory,
    pub(super) readings: &'a dyn Readings,
    pub(super) slow: &'a SlowValues,
    pub(super) switches: &'a Switches,
}

impl<'a> View<'a> {
    /// The module over the VMs and the numbers of this moment.
    #[must_use]
    pub const fn new(moment: Moment<'a>) -> Self {
        let Moment { inventory, readings, slow } = moment;
        Self { inventory, readings, slow, switches: &OFF }
    }

    /// What the numbers are read from.
    pub(super) const fn moment(self) -> Moment<'a> {
        Moment { inventory: self.inventory, readings: self.readings, slow: self.slow }
    }

    /// The same with switches that a manager may set.
    #[must_use]
    pub const fn with_switches(self, switches: &'a Switches) -> Self {
        Self { switches, ..self }
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").field("inventory", self.inventory).finish_non_exhaustive()
    }
}

impl<'a> View<'a> {
    /// What may not be read (index columns and vmAffectedVMs) is noSuchObject: RFC 3416 section 4.2.1
    /// looks only at variables that are accessible by the request.
    fn exactly(self, name: &Oid) -> Lookup<'a> {
        let Some(suffix) = name.strip_prefix(VM_MIB_PARTS) else { return Lookup::NoSuchObject };
        let Some((leaf, tail)) = leaf_above(suffix) else { return Lookup::NoSuchObject };
        match leaf.instance(self, tail) {
            Some(value) => Lookup::Found(value),
            None => Lookup::NoSuchInstance,
        }
    }

    /// Costs a few binary searches for each instance tried. Instances that are absent are tried one by
    /// one, so the worst case is a column whose probes are all dead: as many searches as it has rows.
    fn from(self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'a>)> {
        let suffix = match start.strip_prefix(VM_MIB_PARTS) {
            Some(suffix) => suffix,
            None if *start < VM_MIB => &[],
            None => return None,
        };
        let is_before_end = |leaf: &Leaf| end.is_empty() || leaf.is_below(end);
        let (within, after) = match leaf_above(suffix) {
            Some((leaf, tail)) => (leaf.instance_from(self, tail, include), leaf.suffix()),
            None => (None, suffix),
        };
        let instance = within.or_else(|| {
            LEAVES[LEAVES.partition_point(|leaf| leaf.suffix() <= after)..]
                .iter()
                .take_while(|leaf| is_before_end(leaf))
                .find_map(|leaf| leaf.instance_from(self, &[], false))
        })?;
        let name = instance.name();
        (end.is_empty() || name < *end).then_some((name, instance.value))
    }
}

impl Objects for View<'_> {
    fn get(&self, name: &Oid) -> Lookup<'_> {
        self.exactly(name)
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        self.from(start, include, end)
    }

    fn test_set(&self, name: &Oid, value: Option<Value<'_>>) -> Result<(), SetError> {
        let suffix = name.strip_prefix(VM_MIB_PARTS).ok_or(SetError::NotWritable)?;
        self.switches.test(suffix, value)
    }

    fn commit_set(&self, name: &Oid, value: Value<'_>) -> Result<(), SetFailed> {
        let suffix = name.strip_prefix(VM_MIB_PARTS).ok_or(SetFailed)?;
        self.switches.set(suffix, value)
    }
}

/// A [`View`] that keeps the state of the inventory that it shows, for as long as an answer takes.
#[derive(Debug)]
pub struct Snapshot<I, R, S> {
    inventory: I,
    readings: R,
    slow: Arc<SlowValues>,
    switches: S,
}

impl<I, R, S> Snapshot<I, R, S>
where
    I: Deref<Target: Deref<Target = Inventory>>,
    R: Deref<Target = dyn Readings>,
    S: Deref<Target = Switches>,
{
    /// Keeps what a registry gave out.
    pub const fn new(inventory: I, readings: R, slow: Arc<SlowValues>, switches: S) -> Self {
        Self { inventory, readings, slow, switches }
    }

    fn view(&self) -> View<'_> {
        let (inventory, readings, slow) = (&*self.inventory, &*self.readings, &*self.slow);
        View::new(Moment { inventory, readings, slow }).with_switches(&self.switches)
    }
}

impl<I, R, S> Objects for Snapshot<I, R, S>
where
    I: Deref<Target: Deref<Target = Inventory>>,
    R: Deref<Target = dyn Readings>,
    S: Deref<Target = Switches>,
{
    fn get(&self, name: &Oid) -> Lookup<'_> {
        self.view().exactly(name)
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        self.view().from(start, include, end)
    }

    fn test_set(&self, name: &Oid, value: Option<Value<'_>>) -> Result<(), SetError> {
        Objects::test_set(&self.view(), name, value)
    }

    fn commit_set(&self, name: &Oid, value: Value<'_>) -> Result<(), SetFailed> {
        Objects::commit_set(&self.view(), name, value)
    }
}

/// The object that the name with this suffix is an instance of, and the rest of the name.
fn leaf_above(suffix: &[u32]) -> Option<(&'static Leaf, &[u32])> {
    // No leaf is the prefix of another, so only the last one that is not after the name can be its prefix.
    let after = LEAVES.partition_point(|leaf| leaf.suffix() <= suffix);
    let leaf = LEAVES.get(after.checked_sub(1)?)?;
    Some((leaf, suffix.strip_prefix(leaf.suffix())?))
}

impl Leaf {
    /// The instance with exactly this index.
    fn instance<'a>(&self, view: View<'a>, index: &[u32]) -> Option<Value<'a>> {
        let value = match self.object.getter {
            Getter::None => None,
            Getter::Scalar(read) => exact(view, index, |view, Scalar| read(view)),
            Getter::Vm(read) => exact(view, index, read),
            Getter::Vcpu(read) => exact(view, index, read),
            Getter::Affinity(read) => exact(view, index, read),
            Getter::Disk(read) => exact(view, index, read),
            Getter::Nic(read) => exact(view, index, read),
        }?;
        self.assert_admitted(&value);
        Some(value)
    }

    /// The first instance after `tail`, or at it where `include` is set.
    fn instance_from<'a>(
        &'static self,
        view: View<'a>,
        tail: &[u32],
        include: bool,
    ) -> Option<Instance<'a>> {
        match self.object.getter {
            Getter::None => None,
            Getter::Scalar(read) => self.first(view, tail, include, |view, Scalar| read(view)),
            Getter::Vm(read) => self.first(view, tail, include, read),
            Getter::Vcpu(read) => self.first(view, tail, include, read),
            Getter::Affinity(read) => self.first(view, tail, include, read),
            Getter::Disk(read) => self.first(view, tail, include, read),
            Getter::Nic(read) => self.first(view, tail, include, read),
        }
    }

    fn first<'a, const N: usize, R: Row<'a, N>>(
        &'static self,
        view: View<'a>,
        tail: &[u32],
        include: bool,
        read: impl Fn(View<'a>, R) -> Option<Value<'a>>,
    ) -> Option<Instance<'a>> {
        let mut at = lower_bound(tail, include)?;
        loop {
            let row = R::at_or_after(view.inventory, at)?;
            if let Some(value) = read(view, row) {
                self.assert_admitted(&value);
                return Some(Instance::new(self, row.index(), value));
            }
            at = successor(row.index())?;
        }
    }

    fn is_below(&self, end: &Oid) -> bool {
        match end.strip_prefix(VM_MIB_PARTS) {
            Some(end) => self.suffix() < end,
            None => VM_MIB < *end,
        }
    }

    fn assert_admitted(&self, value: &Value<'_>) {
        debug_assert!(
            self.object.syntax.admits(value),
            "{} cannot have the value {value:?}",
            self.object.name
        );
    }
}

/// An instance that was found; its name is made only once it is known to be the answer.
struct Instance<'a> {
    leaf: &'static Leaf,
    index: [u32; MAX_INDEX_LEN],
    index_len: usize,
    value: Value<'a>,
}

impl<'a> Instance<'a> {
    fn new<const N: usize>(leaf: &'static Leaf, index: [u32; N], value: Value<'a>) -> Self {
        let mut padded = [0; MAX_INDEX_LEN];
        padded[..N].copy_from_slice(&index);
        Self { leaf, index: padded, index_len: N, value }
    }

    fn name(&self) -> Oid {
        let mut parts = [0; VM_MIB_PARTS.len() + Leaf::MAX_LEN + MAX_INDEX_LEN];
        let mut len = 0;
        for part in [VM_MIB_PARTS, self.leaf.suffix(), &self.index[..self.index_len]] {
            parts[len..len + part.len()].copy_from_slice(part);
            len += part.len();
        }
        Oid::of(&parts[..len])
    }
}

fn exact<'a, const N: usize, R: Row<'a, N>>(
    view: View<'a>,
    index: &[u32],
    read: impl Fn(View<'a>, R) -> Option<Value<'a>>,
) -> Option<Value<'a>> {
    let index = <[u32; N]>::try_from(index).ok()?;
    let row = R::at_or_after(view.inventory, index)?;
    if row.index() == index { read(view, row) } else { None }
}

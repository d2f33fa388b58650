//! Get, GetNext and the phases of a SET over modules below their roots.

use std::fmt;

use thiserror::Error;

use super::{
    Module, ObjectType, Suffix,
    object::{Accessor, Phase},
};
use crate::{
    agentx::{Lookup, Objects, SetError, SetFailed},
    snmp::{Oid, Value},
};

/// Modules below their roots. Made once; it is the same for every request.
pub struct Tree<C: 'static> {
    /// Ascending by root.
    modules: Vec<Rooted<C>>,
}

/// A module at its place.
struct Rooted<C: 'static> {
    root: Oid,
    module: &'static Module<C>,
    /// Every readable object, ascending, and none the prefix of another.
    leaves: Vec<Leaf<C>>,
    /// The keys of the leaves: what is searched.
    keys: Vec<Key>,
}

/// The first sub-identifiers of a suffix, two a word: as many as a leaf has at most. Keys of leaves are in the order
/// of the leaves, and that of a name after the last leaf that is not after the name: no sub-identifier of an object
/// is 0.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
struct Key([u64; Suffix::MAX_LEN / 2]);

impl Key {
    fn of(suffix: &[u32]) -> Self {
        let part = |at: usize| u64::from(suffix.get(at).copied().unwrap_or(0));
        Self([0, 2, 4].map(|at| part(at) << 32 | part(at + 1)))
    }
}

/// A readable object with its place below the module's root.
struct Leaf<C: 'static> {
    suffix: Suffix,
    accessor: &'static dyn Accessor<C>,
}

/// Why modules cannot be served together.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TreeError {
    /// One root is the same as another or below it.
    #[error("The module {below} at {root} is within {above}")]
    Within {
        /// The inner module.
        below: &'static str,
        /// Its root.
        root: Box<Oid>,
        /// The outer module.
        above: &'static str,
    },
    /// SMI has no object with a sub-identifier of 0 below its module.
    #[error("The object {object} of the module {module} has a sub-identifier of 0")]
    Zero {
        /// The module.
        module: &'static str,
        /// The object.
        object: &'static str,
    },
    /// Two objects of a module have the same identifier, or one is above another.
    #[error("The object {below} of the module {module} is within {above}")]
    Object {
        /// The module.
        module: &'static str,
        /// The inner object.
        below: &'static str,
        /// The outer object.
        above: &'static str,
    },
}

impl<C: 'static> Tree<C> {
    /// These modules at these roots, in any order.
    ///
    /// # Errors
    ///
    /// [`TreeError`] where two modules or two objects would answer for one name.
    pub fn new(
        modules: impl IntoIterator<Item = (Oid, &'static Module<C>)>,
    ) -> Result<Self, TreeError> {
        let mut modules: Vec<_> = modules
            .into_iter()
            .map(|(root, module)| {
                let leaves = leaves(module)?;
                let keys = leaves.iter().map(|leaf| Key::of(leaf.suffix.parts())).collect();
                Ok(Rooted { root, module, leaves, keys })
            })
            .collect::<Result<_, _>>()?;
        modules.sort_by_key(|rooted| rooted.root);
        // In this order, a root comes directly behind the one that it is within.
        for pair in modules.windows(2) {
            let [above, below] = pair else { continue };
            if below.root.strip_prefix(above.root.parts()).is_some() {
                return Err(TreeError::Within {
                    below: below.module.root.module(),
                    root: Box::new(below.root),
                    above: above.module.root.module(),
                });
            }
        }
        Ok(Self { modules })
    }

    /// The modules with their roots, ascending: what is to be registered with the master.
    pub fn modules(&self) -> impl Iterator<Item = (&Oid, &'static Module<C>)> {
        self.modules.iter().map(|rooted| (&rooted.root, rooted.module))
    }

    /// All readable objects with their names, ascending.
    pub fn objects(&self) -> impl Iterator<Item = (Oid, &'static ObjectType)> {
        self.modules.iter().flat_map(|rooted| {
            let name = |leaf: &Leaf<C>| Oid::concat([rooted.root.parts(), leaf.suffix.parts()]);
            // An object whose name is too long has no instance either.
            let object =
                move |leaf: &Leaf<C>| Some((name(leaf).ok()?, leaf.accessor.object_type()));
            rooted.leaves.iter().filter_map(object)
        })
    }

    /// The instances of all objects in a context.
    pub const fn instances(&self, context: C) -> Instances<'_, C> {
        Instances { tree: self, context }
    }

    /// The object that this is an instance of, and its index.
    fn accessor<'n>(&self, name: &'n Oid) -> Option<(&'static dyn Accessor<C>, &'n [u32])> {
        // No root is within another. There are so few that a search costs more than comparing one after the other.
        let (rooted, suffix) = self
            .modules
            .iter()
            .find_map(|rooted| Some((rooted, name.strip_prefix(rooted.root.parts())?)))?;
        let (leaf, index) = rooted.leaf_before(rooted.after(suffix), suffix)?;
        Some((leaf.accessor, index))
    }
}

fn leaves<C: 'static>(module: &'static Module<C>) -> Result<Vec<Leaf<C>>, TreeError> {
    let mut leaves: Vec<_> = module
        .branches
        .iter()
        .flat_map(|branch| branch.accessors())
        .filter(|(_, accessor)| accessor.object_type().access.is_readable())
        .map(|(suffix, accessor)| Leaf { suffix, accessor })
        .collect();
    leaves.sort_by(|one, other| one.suffix.parts().cmp(other.suffix.parts()));
    let module_name = module.root.module();
    if let Some(leaf) = leaves.iter().find(|leaf| leaf.suffix.parts().contains(&0)) {
        let object = leaf.accessor.object_type().name;
        return Err(TreeError::Zero { module: module_name, object });
    }
    for pair in leaves.windows(2) {
        let [above, below] = pair else { continue };
        if below.suffix.parts().starts_with(above.suffix.parts()) {
            return Err(TreeError::Object {
                module: module_name,
                below: below.accessor.object_type().name,
                above: above.accessor.object_type().name,
            });
        }
    }
    Ok(leaves)
}

impl<C: 'static> Rooted<C> {
    /// How many of the leaves are not after the name with this suffix.
    fn after(&self, suffix: &[u32]) -> usize {
        let key = Key::of(suffix);
        self.keys.partition_point(|leaf| *leaf <= key)
    }

    /// The object that the name with this suffix is an instance of, and its index. `after` is that of the name.
    fn leaf_before<'s>(&self, after: usize, suffix: &'s [u32]) -> Option<(&Leaf<C>, &'s [u32])> {
        // No leaf is the prefix of another, so only the last one that is not after the name can be its prefix.
        let leaf = self.leaves.get(after.checked_sub(1)?)?;
        Some((leaf, suffix.strip_prefix(leaf.suffix.parts())?))
    }

    /// The first instance of the module after the one with this suffix, or at it where `include` is set. Costs a
    /// few binary searches for each instance tried. Instances that are absent are tried one by one, so the worst
    /// case is a column whose values are all absent: as many searches as it has rows.
    fn first<'a>(
        &self,
        context: &'a C,
        suffix: &[u32],
        include: bool,
        end: &Oid,
        name: &mut Oid,
    ) -> Option<Value<'a>> {
        let mut first = |leaf: &Leaf<C>, index: &[u32], include| {
            let object = [self.root.parts(), leaf.suffix.parts()];
            leaf.accessor.first(context, object, index, include, name)
        };
        let after = self.after(suffix);
        if let Some((leaf, index)) = self.leaf_before(after, suffix)
            && let Some(value) = first(leaf, index, include)
        {
            return Some(value);
        }
        self.leaves[after..]
            .iter()
            .take_while(|leaf| self.is_before(leaf.suffix.parts(), end))
            .find_map(|leaf| first(leaf, &[], false))
    }

    /// Whether a name with this suffix comes before `end`; an empty one is no bound.
    fn is_before(&self, suffix: &[u32], end: &Oid) -> bool {
        end.is_empty()
            || match end.strip_prefix(self.root.parts()) {
                Some(end) => suffix < end,
                None => self.root < *end,
            }
    }
}

/// The instances of all objects of a [`Tree`] in one context. It answers from the context alone: it allocates
/// nothing and takes no lock.
pub struct Instances<'t, C: 'static> {
    tree: &'t Tree<C>,
    context: C,
}

impl<C: 'static> Instances<'_, C> {
    fn set(&self, phase: Phase, name: &Oid, value: Value<'_>) -> Result<(), SetFailed> {
        let (accessor, index) = self.tree.accessor(name).ok_or(SetFailed)?;
        accessor.set(phase, &self.context, index, value)
    }
}

impl<C: 'static> Objects for Instances<'_, C> {
    /// What may not be read (index columns, objects for notifications) is noSuchObject: RFC 3416 section 4.2.1
    /// looks only at variables that are accessible by the request.
    fn get(&self, name: &Oid) -> Lookup<'_> {
        let Some((accessor, index)) = self.tree.accessor(name) else { return Lookup::NoSuchObject };
        accessor.get(&self.context, index).map_or(Lookup::NoSuchInstance, Lookup::Found)
    }

    fn get_next(&self, start: &Oid, include: bool, end: &Oid) -> Option<(Oid, Value<'_>)> {
        let modules = &self.tree.modules;
        let after = modules.partition_point(|rooted| rooted.root <= *start);
        let mut name = Oid::empty();
        let within = after.checked_sub(1).and_then(|at| {
            let suffix = start.strip_prefix(modules[at].root.parts())?;
            modules[at].first(&self.context, suffix, include, end, &mut name)
        });
        let value = within.or_else(|| {
            modules[after..]
                .iter()
                .take_while(|rooted| rooted.is_before(&[], end))
                .find_map(|rooted| rooted.first(&self.context, &[], false, end, &mut name))
        })?;
        if !end.is_empty() && name >= *end {
            return None;
        }
        Some((name, value))
    }

    fn test_set(&self, name: &Oid, value: Option<Value<'_>>) -> Result<(), SetError> {
        let (accessor, index) = self.tree.accessor(name).ok_or(SetError::NotWritable)?;
        accessor.test(&self.context, index, value)
    }

    fn commit_set(&self, name: &Oid, value: Value<'_>) -> Result<(), SetFailed> {
        self.set(Phase::Commit, name, value)
    }

    fn undo_set(&self, name: &Oid, before: Value<'_>) -> Result<(), SetFailed> {
        self.set(Phase::Undo, name, before)
    }

    fn cleanup_set(&self, name: &Oid, value: Value<'_>) {
        // What has no setter was not committed, and a row that is gone since has nothing to clean up.
        let _ = self.set(Phase::Cleanup, name, value);
    }

    fn reinitialize(&self) {
        for leaf in self.tree.modules.iter().flat_map(|rooted| &rooted.leaves) {
            leaf.accessor.reinitialize(&self.context);
        }
    }
}

impl<C> fmt::Debug for Tree<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.modules()).finish()
    }
}

impl<C: fmt::Debug> fmt::Debug for Instances<'_, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instances")
            .field("tree", &self.tree)
            .field("context", &self.context)
            .finish()
    }
}

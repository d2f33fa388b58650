//! The IMPORTS of a module: what its tables use of others.

use std::fmt::{self, Write};

use super::{Branch, Indexed, Members, Module, Syntax};
use crate::snmp::Oid;

/// Types that SNMPv2-SMI defines; the others are ASN.1's own.
const SMI_TYPES: [&str; 8] = [
    "TimeTicks",
    "Counter32",
    "Counter64",
    "Gauge32",
    "Unsigned32",
    "Integer32",
    "IpAddress",
    "Opaque",
];

/// Nodes that SNMPv2-SMI defines for others to be below.
const SMI_NODES: [(&str, &[u32]); 3] = [
    ("mib-2", &[1, 3, 6, 1, 2, 1]),
    ("experimental", &[1, 3, 6, 1, 3]),
    ("enterprises", &[1, 3, 6, 1, 4, 1]),
];

/// Columns of a line.
const WIDTH: usize = 72;

/// The node that a root is below, and the sub-identifiers after it.
pub(super) fn parent_of_root(root: &Oid) -> (&'static str, &[u32]) {
    SMI_NODES
        .into_iter()
        .chain([("iso", &[1][..])])
        .find_map(|(name, parts)| {
            Some((name, root.strip_prefix(parts).filter(|rest| !rest.is_empty())?))
        })
        .unwrap_or_else(|| ("", root.parts()))
}

/// Names by the module that defines them, in the order in which they came.
#[derive(Default)]
struct Imports(Vec<(&'static str, Vec<&'static str>)>);

impl Imports {
    fn add(&mut self, module: &'static str, name: &'static str) {
        let at = self.0.iter().position(|(known, _)| *known == module);
        let at = at.unwrap_or_else(|| {
            self.0.push((module, Vec::new()));
            self.0.len() - 1
        });
        if !self.0[at].1.contains(&name) {
            self.0[at].1.push(name);
        }
    }
}

pub(super) fn imports<C>(out: &mut String, module: &'static Module<C>, root: &Oid) -> fmt::Result {
    let objects = || module.branches.iter().flat_map(|branch| branch.object_types());
    let mut imports = Imports::default();
    imports.add("SNMPv2-SMI", "MODULE-IDENTITY");
    if !module.branches.is_empty() {
        imports.add("SNMPv2-SMI", "OBJECT-TYPE");
    }
    if module.notifications.iter().any(|some| !some.is_empty()) {
        imports.add("SNMPv2-SMI", "NOTIFICATION-TYPE");
    }
    let own = module.conventions.iter().map(|convention| convention.syntax);
    let types: Vec<_> =
        objects().map(|object| object.syntax).chain(own).map(|syntax| syntax.type_name()).collect();
    for name in SMI_TYPES.into_iter().filter(|name| types.contains(name)) {
        imports.add("SNMPv2-SMI", name);
    }
    let (parent, _) = parent_of_root(root);
    if SMI_NODES.iter().any(|(name, _)| *name == parent) {
        imports.add("SNMPv2-SMI", parent);
    }
    let is_of_objects = |members| matches!(members, Members::Objects(_));
    if module.groups.iter().any(|group| is_of_objects(group.members)) {
        imports.add("SNMPv2-CONF", "OBJECT-GROUP");
    }
    if !module.compliances.is_empty() {
        imports.add("SNMPv2-CONF", "MODULE-COMPLIANCE");
    }
    if module.groups.iter().any(|group| !is_of_objects(group.members)) {
        imports.add("SNMPv2-CONF", "NOTIFICATION-GROUP");
    }
    if !module.conventions.is_empty() {
        imports.add("SNMPv2-TC", "TEXTUAL-CONVENTION");
    }
    for object in objects() {
        if let Syntax::Convention(convention) | Syntax::Sized(convention, _) = object.syntax
            && let Some(module) = convention.module
        {
            imports.add(module, convention.name);
        }
    }
    let name = module.root.module();
    for &branch in module.branches {
        let branch: &dyn Branch = branch;
        match branch.table_type().map(|table| table.index) {
            Some(Indexed::Augments(base)) if base.parent().module() != name => {
                if let Some(table) = base.table_type() {
                    imports.add(base.parent().module(), table.row);
                }
            }
            Some(Indexed::Own | Indexed::Below(_)) => {
                let index = branch.index().into_iter();
                for (of, part) in index.filter(|(of, _)| *of != name) {
                    imports.add(of, part.name);
                }
            }
            Some(Indexed::Augments(_)) | None => {}
        }
    }
    print(out, &imports)
}

fn print(out: &mut String, Imports(imports): &Imports) -> fmt::Result {
    out.write_str("\nIMPORTS")?;
    for (module, names) in imports {
        let mut column = WIDTH;
        for (i, name) in names.iter().enumerate() {
            let comma = if i + 1 < names.len() { "," } else { "" };
            if column + 1 + name.len() + comma.len() > WIDTH {
                out.write_str("\n    ")?;
                column = 4;
            } else {
                out.write_char(' ')?;
                column += 1;
            }
            write!(out, "{name}{comma}")?;
            column += name.len() + comma.len();
        }
        write!(out, "\n        FROM {module}")?;
    }
    writeln!(out, ";")
}

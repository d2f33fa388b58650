//! Prints a module (RFC 2578, 2579, 2580).

use std::fmt::{self, Display, Write};

use super::{
    Access, Branch, Compliance, Convention, Group, Identity, Indexed, Members, Module, Node,
    Notification, ObjectType, Syntax, TableType,
    imports::{imports, parent_of_root},
};
use crate::snmp::Oid;

/// Columns that a line of a description has to itself.
const DESCRIPTION_WIDTH: usize = 58;

/// The text of a module with this root.
#[must_use]
pub fn text<C>(module: &'static Module<C>, root: &Oid) -> String {
    let mut out = String::new();
    #[expect(clippy::expect_used, reason = "a String takes all that is written to it")]
    print(&mut out, module, root).expect("writing to a String does not fail");
    out
}

fn print<C>(out: &mut String, module: &'static Module<C>, root: &Oid) -> fmt::Result {
    writeln!(out, "{} DEFINITIONS ::= BEGIN", module.root.module())?;
    imports(out, module, root)?;
    identity(out, module.root.name, &module.identity)?;
    let (parent, rest) = parent_of_root(root);
    let numbers: Vec<_> = rest.iter().map(ToString::to_string).collect();
    writeln!(out, "    ::= {{ {parent} {} }}", numbers.join(" "))?;
    let branches = module.branches.iter().map(|branch| branch.parent());
    let notifications = module.notifications.iter().copied().flatten();
    let of_notifications = notifications.clone().map(|notification| notification.parent);
    let groups = module.groups.iter().map(|group| group.parent);
    let conformance = module.compliances.iter().map(|statement| statement.parent).chain(groups);
    let mut nodes = Nodes::default();
    let top = branches.clone().chain(of_notifications).chain(conformance.clone()).filter_map(top);
    nodes.print(out, top)?;
    module.conventions.iter().try_for_each(|own| convention(out, own))?;
    nodes.print(out, branches)?;
    for branch in module.branches {
        match branch.table_type() {
            Some(rows) => table(out, *branch, rows)?,
            None => branch
                .object_types()
                .into_iter()
                .try_for_each(|scalar| object(out, scalar, branch.parent().name))?,
        }
    }
    notifications.into_iter().try_for_each(|one| notification(out, one))?;
    nodes.print(out, conformance)?;
    module.compliances.iter().try_for_each(|statement| compliance(out, statement))?;
    module.groups.iter().try_for_each(|one| group(out, one))?;
    out.write_str("\nEND\n")
}

/// A MODULE-IDENTITY without its place.
pub(super) fn identity(out: &mut String, name: &str, identity: &Identity) -> fmt::Result {
    writeln!(out, "\n{name} MODULE-IDENTITY")?;
    if let Some((updated, _)) = identity.revisions.first() {
        writeln!(out, "    LAST-UPDATED \"{updated}\"")?;
    }
    writeln!(out, "    ORGANIZATION \"{}\"", identity.organization)?;
    clause(out, "CONTACT-INFO", identity.contact)?;
    clause(out, "DESCRIPTION", identity.description)?;
    for (date, what) in identity.revisions {
        writeln!(out, "    REVISION \"{date}\"")?;
        clause(out, "DESCRIPTION", what)?;
    }
    Ok(())
}

/// The node that is directly below the root, above this one or the same.
fn top(node: &'static Node) -> Option<&'static Node> {
    let (parent, _) = node.parent()?;
    top(parent).or(Some(node))
}

/// Nodes that are printed already. Each is, where it is needed first.
#[derive(Default)]
struct Nodes(Vec<&'static str>);

impl Nodes {
    /// Prints those of the nodes, and of the nodes above them, that are not printed yet.
    fn print(
        &mut self,
        out: &mut String,
        nodes: impl Iterator<Item = &'static Node>,
    ) -> fmt::Result {
        let mut new = Vec::new();
        for node in nodes {
            self.add(node, &mut new);
        }
        if new.is_empty() {
            return Ok(());
        }
        new.sort_by_key(|(_, parent, number)| (parent.suffix().parts().to_vec(), *number));
        let width = new.iter().map(|(node, ..)| node.name.len()).max().unwrap_or(0);
        writeln!(out)?;
        for (node, parent, number) in new {
            let name = node.name;
            writeln!(out, "{name:width$} OBJECT IDENTIFIER ::= {{ {} {number} }}", parent.name)?;
        }
        Ok(())
    }

    fn add(&mut self, node: &'static Node, new: &mut Vec<(&'static Node, &'static Node, u32)>) {
        if let Some((parent, number)) = node.parent()
            && !self.0.contains(&node.name)
        {
            self.add(parent, new);
            self.0.push(node.name);
            new.push((node, parent, number));
        }
    }
}

fn convention(out: &mut String, convention: &Convention) -> fmt::Result {
    writeln!(out, "\n{} ::= TEXTUAL-CONVENTION", convention.name)?;
    if let Some(hint) = convention.hint {
        writeln!(out, "    DISPLAY-HINT \"{hint}\"")?;
    }
    status(out, convention.description)?;
    writeln!(out, "    SYNTAX       {}", Clause(&convention.syntax))
}

fn table(out: &mut String, branch: &'static dyn Branch, table: &'static TableType) -> fmt::Result {
    let row_type = row_type(table);
    let columns = branch.object_types();
    writeln!(out, "\n{} OBJECT-TYPE", table.name)?;
    writeln!(out, "    SYNTAX       SEQUENCE OF {row_type}")?;
    writeln!(out, "    MAX-ACCESS   {}", Access::NotAccessible)?;
    status(out, table.description)?;
    writeln!(out, "    ::= {{ {} {} }}", table.parent.name, table.number)?;

    writeln!(out, "\n{} OBJECT-TYPE", table.row)?;
    writeln!(out, "    SYNTAX       {row_type}")?;
    writeln!(out, "    MAX-ACCESS   {}", Access::NotAccessible)?;
    status(out, table.row_description)?;
    match table.index {
        Indexed::Own | Indexed::Below(_) => {
            let index: Vec<_> = branch.index().iter().map(|(_, part)| part.name).collect();
            writeln!(out, "    INDEX        {{ {} }}", index.join(", "))?;
        }
        Indexed::Augments(base) => {
            let row = base.table_type().map_or("", |base| base.row);
            writeln!(out, "    AUGMENTS     {{ {row} }}")?;
        }
    }
    writeln!(out, "    ::= {{ {} 1 }}", table.name)?;

    writeln!(out, "\n{row_type} ::= SEQUENCE {{")?;
    for (i, column) in columns.iter().enumerate() {
        let comma = if i + 1 < columns.len() { "," } else { "" };
        writeln!(out, "    {:<25} {}{comma}", column.name, column.syntax.type_name())?;
    }
    writeln!(out, "}}")?;
    columns.into_iter().try_for_each(|column| object(out, column, table.row))
}

/// The type of a row has the row's name with a capital letter.
fn row_type(table: &TableType) -> String {
    let mut name = table.row.to_owned();
    name[..1].make_ascii_uppercase();
    name
}

fn object(out: &mut String, object: &ObjectType, parent: &str) -> fmt::Result {
    writeln!(out, "\n{} OBJECT-TYPE", object.name)?;
    writeln!(out, "    SYNTAX       {}", Clause(&object.syntax))?;
    if let Some(units) = object.units {
        writeln!(out, "    UNITS        \"{units}\"")?;
    }
    writeln!(out, "    MAX-ACCESS   {}", object.access)?;
    status(out, object.description)?;
    writeln!(out, "    ::= {{ {parent} {} }}", object.number)
}

fn notification(out: &mut String, notification: &Notification) -> fmt::Result {
    writeln!(out, "\n{} NOTIFICATION-TYPE", notification.name)?;
    let objects: Vec<_> = notification.objects.iter().map(|o| o.object_type.name).collect();
    if !objects.is_empty() {
        list(out, "OBJECTS", &objects)?;
    }
    status(out, notification.description)?;
    writeln!(out, "    ::= {{ {} {} }}", notification.parent.name, notification.number)
}

fn compliance(out: &mut String, compliance: &Compliance) -> fmt::Result {
    writeln!(out, "\n{} MODULE-COMPLIANCE", compliance.name)?;
    status(out, compliance.description)?;
    writeln!(out, "    MODULE -- this module")?;
    let mandatory: Vec<_> = compliance.mandatory.iter().map(|group| group.name).collect();
    if !mandatory.is_empty() {
        list(out, "MANDATORY-GROUPS", &mandatory)?;
    }
    for (group, when) in compliance.conditional {
        writeln!(out, "    GROUP        {}", group.name)?;
        description(out, when)?;
    }
    let objects = compliance.may_be_read_only.iter().flat_map(|branch| branch.object_types());
    for object in objects.filter(|object| object.access == Access::ReadWrite) {
        writeln!(out, "    OBJECT       {}", object.name)?;
        writeln!(out, "    MIN-ACCESS   {}", Access::ReadOnly)?;
        description(out, "Write access is not required.")?;
    }
    writeln!(out, "    ::= {{ {} {} }}", compliance.parent.name, compliance.number)
}

fn group(out: &mut String, group: &Group) -> fmt::Result {
    let (kind, members) = match group.members {
        Members::Objects(_) => ("OBJECT-GROUP", "OBJECTS"),
        Members::Notifications(_) => ("NOTIFICATION-GROUP", "NOTIFICATIONS"),
    };
    writeln!(out, "\n{} {kind}", group.name)?;
    list(out, members, &group.members.names())?;
    status(out, group.description)?;
    writeln!(out, "    ::= {{ {} {} }}", group.parent.name, group.number)
}

pub(super) fn list(out: &mut String, clause: &str, names: &[&str]) -> fmt::Result {
    writeln!(out, "    {clause} {{\n        {}\n    }}", names.join(",\n        "))
}

pub(super) fn status(out: &mut String, text: &str) -> fmt::Result {
    writeln!(out, "    STATUS       current")?;
    description(out, text)
}

pub(super) fn description(out: &mut String, text: &str) -> fmt::Result {
    clause(out, "DESCRIPTION", text)
}

/// A clause with a text, whose paragraphs have an empty line between them.
fn clause(out: &mut String, name: &str, text: &str) -> fmt::Result {
    const INDENT: &str = "\n            ";
    write!(out, "    {name}{INDENT}\"")?;
    for (i, paragraph) in text.split("\n\n").enumerate() {
        if i > 0 {
            write!(out, "\n{INDENT}")?;
        }
        let mut column = 0;
        for word in paragraph.split_ascii_whitespace() {
            if column > 0 && column + 1 + word.len() > DESCRIPTION_WIDTH {
                out.write_str(INDENT)?;
                column = 0;
            } else if column > 0 {
                out.write_char(' ')?;
                column += 1;
            }
            out.write_str(word)?;
            column += word.len();
        }
    }
    writeln!(out, "\"")
}

/// A SYNTAX clause with its ranges and named numbers.
pub(super) struct Clause<'a>(pub(super) &'a Syntax);

impl Display for Clause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.type_name())?;
        match *self.0 {
            Syntax::Integer32(ranges) => Ranges("", ranges).fmt(f),
            Syntax::Unsigned32(ranges) | Syntax::Gauge32(ranges) => Ranges("", ranges).fmt(f),
            Syntax::OctetString(sizes) | Syntax::Sized(_, sizes) => Ranges("SIZE ", sizes).fmt(f),
            Syntax::Enumeration(names) => named(f, names),
            Syntax::Bits(names) => named(f, names),
            Syntax::Counter32
            | Syntax::Counter64
            | Syntax::TimeTicks
            | Syntax::ObjectIdentifier
            | Syntax::IpAddress
            | Syntax::Opaque
            | Syntax::Convention(_) => Ok(()),
        }
    }
}

fn named(f: &mut fmt::Formatter<'_>, names: &[(&str, impl Display)]) -> fmt::Result {
    f.write_str(" {")?;
    for (i, (name, number)) in names.iter().enumerate() {
        let comma = if i + 1 < names.len() { "," } else { "" };
        write!(f, "\n                     {name}({number}){comma}")?;
    }
    f.write_str("\n                 }")
}

/// Ranges of a value, or of its size; none are no restriction.
struct Ranges<'a, T>(&'static str, &'a [(T, T)]);

impl<T: Display + PartialEq> Display for Ranges<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(of, ranges) = self;
        if ranges.is_empty() {
            return Ok(());
        }
        // SIZE has parentheses of its own within those of the restriction.
        let (open, close) = if of.is_empty() { (" (", ")") } else { ("(", "))") };
        if !of.is_empty() {
            write!(f, " ({of}")?;
        }
        f.write_str(open)?;
        for (i, (low, high)) in ranges.iter().enumerate() {
            if i > 0 {
                f.write_str(" | ")?;
            }
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}..{high}")? }
        }
        f.write_str(close)
    }
}

impl Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAccessible => "not-accessible",
            Self::AccessibleForNotify => "accessible-for-notify",
            Self::ReadOnly => "read-only",
            Self::ReadWrite => "read-write",
        })
    }
}

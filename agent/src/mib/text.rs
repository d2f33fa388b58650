//! Prints the module from the schema (RFC 2578, 2579, 2580).

use std::fmt::{self, Display, Write};

use super::{
    conformance::{COMPLIANCES, Compliance, GROUPS, Members},
    convention::OWN,
    notification::{BULK, Notification, PER_VM},
    schema::{Access, Branch, Convention, Object, Syntax, TREE, Table},
};

/// Columns that a line of a description has to itself.
const DESCRIPTION_WIDTH: usize = 58;

/// The module VM-MIB: names, numbers, types, access and conformance as RFC 7666 has them, descriptions in
/// our own words.
#[must_use]
pub fn text() -> String {
    let mut out = String::new();
    #[expect(clippy::expect_used, reason = "a String takes all that is written to it")]
    module(&mut out).expect("writing to a String does not fail");
    out
}

fn module(out: &mut String) -> fmt::Result {
    out.write_str(HEAD)?;
    for own in OWN {
        convention(out, own)?;
    }
    writeln!(out, "\nvmHypervisor OBJECT IDENTIFIER ::= {{ vmObjects 1 }}")?;
    for branch in TREE {
        match branch {
            Branch::Scalars { parent, objects, .. } => {
                objects.iter().try_for_each(|scalar| object(out, scalar, parent))?;
            }
            Branch::Table { table: rows, suffix } => table(out, rows, suffix)?,
        }
    }
    PER_VM.iter().chain(BULK).try_for_each(|told| notification(out, told))?;
    writeln!(out, "\nvmCompliances OBJECT IDENTIFIER ::= {{ vmConformance 1 }}")?;
    writeln!(out, "vmGroups      OBJECT IDENTIFIER ::= {{ vmConformance 2 }}")?;
    COMPLIANCES.iter().try_for_each(|statement| compliance(out, statement))?;
    for group in GROUPS {
        let (kind, clause) = match group.members {
            Members::Objects(_) | Members::Columns(_) => ("OBJECT-GROUP", "OBJECTS"),
            Members::Notifications(_) => ("NOTIFICATION-GROUP", "NOTIFICATIONS"),
        };
        writeln!(out, "\n{} {kind}", group.name)?;
        list(out, clause, &group.members.names())?;
        status(out, group.description)?;
        writeln!(out, "    ::= {{ vmGroups {} }}", group.number)?;
    }
    out.write_str("\nEND\n")
}

const HEAD: &str = r#"VM-MIB DEFINITIONS ::= BEGIN

IMPORTS
    MODULE-IDENTITY, OBJECT-TYPE, NOTIFICATION-TYPE, TimeTicks,
    Counter64, Integer32, mib-2
        FROM SNMPv2-SMI
    OBJECT-GROUP, MODULE-COMPLIANCE, NOTIFICATION-GROUP
        FROM SNMPv2-CONF
    TEXTUAL-CONVENTION, PhysAddress, TruthValue
        FROM SNMPv2-TC
    SnmpAdminString
        FROM SNMP-FRAMEWORK-MIB
    UUIDorZero
        FROM UUID-TC-MIB
    InterfaceIndexOrZero
        FROM IF-MIB
    IANAStorageMediaType
        FROM IANA-STORAGE-MEDIA-TYPE-MIB;

vmMIB MODULE-IDENTITY
    LAST-UPDATED "201510120000Z"
    ORGANIZATION "IETF Operations and Management Area Working Group"
    CONTACT-INFO "RFC 7666 names the authors of the module and the
            mailing list of the working group."
    DESCRIPTION
            "Virtual machines and the hypervisor that runs them.

            This is the module of RFC 7666 as kvmeter serves it.
            Names, numbers, types, access and conformance are those
            of the RFC; the descriptions are kvmeter's own, and
            where they differ in meaning the RFC is right."
    REVISION "201510120000Z"
    DESCRIPTION
            "Published as RFC 7666."
    ::= { mib-2 236 }

vmNotifications OBJECT IDENTIFIER ::= { vmMIB 0 }
vmObjects       OBJECT IDENTIFIER ::= { vmMIB 1 }
vmConformance   OBJECT IDENTIFIER ::= { vmMIB 2 }
"#;

fn convention(out: &mut String, convention: &Convention) -> fmt::Result {
    writeln!(out, "\n{} ::= TEXTUAL-CONVENTION", convention.name)?;
    if let Some(hint) = convention.hint {
        writeln!(out, "    DISPLAY-HINT \"{hint}\"")?;
    }
    status(out, convention.description)?;
    writeln!(out, "    SYNTAX       {}", Clause(&convention.syntax))
}

fn table(out: &mut String, table: &Table, suffix: &[u32]) -> fmt::Result {
    let row_type = row_type(table);
    let number = suffix.last().copied().unwrap_or_default();
    writeln!(out, "\n{} OBJECT-TYPE", table.name)?;
    writeln!(out, "    SYNTAX       SEQUENCE OF {row_type}")?;
    writeln!(out, "    MAX-ACCESS   {}", Access::NotAccessible)?;
    status(out, table.description)?;
    writeln!(out, "    ::= {{ vmObjects {number} }}")?;

    writeln!(out, "\n{} OBJECT-TYPE", table.row)?;
    writeln!(out, "    SYNTAX       {row_type}")?;
    writeln!(out, "    MAX-ACCESS   {}", Access::NotAccessible)?;
    status(out, table.row_description)?;
    writeln!(out, "    INDEX        {{ {} }}", table.index.join(", "))?;
    writeln!(out, "    ::= {{ {} 1 }}", table.name)?;

    writeln!(out, "\n{row_type} ::= SEQUENCE {{")?;
    for (i, column) in table.columns.iter().enumerate() {
        let comma = if i + 1 < table.columns.len() { "," } else { "" };
        writeln!(out, "    {:<25} {}{comma}", column.name, type_name(&column.syntax))?;
    }
    writeln!(out, "}}")?;
    table.columns.iter().try_for_each(|column| object(out, column, table.row))
}

/// The type of a row has the row's name with a capital letter.
fn row_type(table: &Table) -> String {
    let mut name = table.row.to_owned();
    name[..1].make_ascii_uppercase();
    name
}

fn object(out: &mut String, object: &Object, parent: &str) -> fmt::Result {
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
    list(out, "OBJECTS", notification.objects)?;
    status(out, notification.description)?;
    writeln!(out, "    ::= {{ vmNotifications {} }}", notification.number)
}

fn compliance(out: &mut String, compliance: &Compliance) -> fmt::Result {
    writeln!(out, "\n{} MODULE-COMPLIANCE", compliance.name)?;
    status(out, compliance.description)?;
    writeln!(out, "    MODULE -- this module")?;
    list(out, "MANDATORY-GROUPS", compliance.mandatory)?;
    for (group, when) in compliance.conditional {
        writeln!(out, "    GROUP        {group}")?;
        description(out, when)?;
    }
    for object in compliance.may_be_read_only {
        writeln!(out, "    OBJECT       {object}")?;
        writeln!(out, "    MIN-ACCESS   {}", Access::ReadOnly)?;
        description(out, "An agent need not let it be written.")?;
    }
    writeln!(out, "    ::= {{ vmCompliances {} }}", compliance.number)
}

fn list(out: &mut String, clause: &str, names: &[&str]) -> fmt::Result {
    writeln!(out, "    {clause} {{\n        {}\n    }}", names.join(",\n        "))
}

fn status(out: &mut String, text: &str) -> fmt::Result {
    writeln!(out, "    STATUS       current")?;
    description(out, text)
}

fn description(out: &mut String, text: &str) -> fmt::Result {
    const INDENT: &str = "\n            ";
    write!(out, "    DESCRIPTION{INDENT}\"")?;
    let mut column = 0;
    for word in text.split_ascii_whitespace() {
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
    writeln!(out, "\"")
}

/// A SYNTAX clause with its ranges and named numbers.
struct Clause<'a>(&'a Syntax);

impl Display for Clause<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(type_name(self.0))?;
        match *self.0 {
            Syntax::Integer32(ranges) => write!(f, " ({})", Ranges(ranges)),
            Syntax::Enumeration(names) => {
                f.write_str(" {")?;
                for (i, (name, number)) in names.iter().enumerate() {
                    let comma = if i + 1 < names.len() { "," } else { "" };
                    write!(f, "\n                     {name}({number}){comma}")?;
                }
                f.write_str("\n                 }")
            }
            Syntax::OctetString([]) => Ok(()),
            Syntax::OctetString(sizes) | Syntax::Sized(_, sizes) => {
                write!(f, " (SIZE ({}))", Ranges(sizes))
            }
            Syntax::ObjectIdentifier
            | Syntax::TimeTicks
            | Syntax::Counter64
            | Syntax::Convention(_) => Ok(()),
        }
    }
}

struct Ranges<'a, T>(&'a [(T, T)]);

impl<T: Display + PartialEq> Display for Ranges<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (low, high)) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str(" | ")?;
            }
            if low == high { write!(f, "{low}")? } else { write!(f, "{low}..{high}")? }
        }
        Ok(())
    }
}

/// The type without its ranges: what the SEQUENCE of a row lists.
fn type_name(syntax: &Syntax) -> &'static str {
    match syntax {
        Syntax::Integer32(_) => "Integer32",
        Syntax::Enumeration(_) => "INTEGER",
        Syntax::OctetString(_) => "OCTET STRING",
        Syntax::ObjectIdentifier => "OBJECT IDENTIFIER",
        Syntax::TimeTicks => "TimeTicks",
        Syntax::Counter64 => "Counter64",
        Syntax::Convention(convention) | Syntax::Sized(convention, _) => convention.name,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_short_and_strings_closed() {
        let text = text();
        for line in text.lines() {
            assert!(line.len() <= 72 && line == line.trim_end() && line.is_ascii(), "{line:?}");
        }
        assert_eq!(text.matches('"').count() % 2, 0);
    }

    #[test]
    fn descriptions_hold_no_quotation_mark() {
        let objects = TREE.iter().flat_map(Branch::objects).map(|object| object.description);
        let conventions = OWN.iter().map(|convention| convention.description);
        let notifications = PER_VM.iter().chain(BULK).map(|told| told.description);
        for description in objects.chain(conventions).chain(notifications) {
            assert!(!description.is_empty() && !description.contains('"'), "{description}");
        }
    }
}

//! AGENT-CAPABILITIES (RFC 2580 section 6): what an agent implements of a module, and where it differs.

use std::fmt::{self, Write};

use super::{
    Identity, Module, Syntax,
    text::{self, Clause},
};
use crate::snmp::{Oid, OidError};

/// The node of SNMPv2-SMI below which the module is.
const TOP: &str = "enterprises";

/// A module with one statement about one other module.
#[derive(Debug)]
pub struct Capabilities {
    /// Name of the module.
    pub module: &'static str,
    /// Descriptor of its MODULE-IDENTITY.
    pub root: &'static str,
    /// The nodes above the root that no module known to every compiler defines, from the top: { `parent` `number` } each. The
    /// first one is below enterprises, the root below the last.
    pub above: &'static [(&'static str, u32)],
    /// Number of the root below the last of these.
    pub root_number: u32,
    /// What is said of it.
    pub identity: Identity,
    /// Number of the statement below the root.
    pub number: u32,
    /// Descriptor of the statement.
    pub name: &'static str,
    /// PRODUCT-RELEASE clause.
    pub product: &'static str,
    /// DESCRIPTION clause of the statement.
    pub description: &'static str,
    /// Where the agent differs from the module, in the order of its objects.
    pub variations: &'static [Variation],
}

/// An object that is implemented otherwise than the module has it.
#[derive(Debug)]
pub struct Variation {
    /// Descriptor of the object.
    pub object: &'static str,
    /// The values that it has, where they are fewer.
    pub syntax: Option<Syntax>,
    /// DESCRIPTION clause, on one line.
    pub description: &'static str,
}

impl Variation {
    /// Another meaning or a missing instance, with the values of the module.
    #[must_use]
    pub const fn of(object: &'static str, description: &'static str) -> Self {
        Self { object, syntax: None, description }
    }

    /// Fewer values.
    #[must_use]
    pub const fn with(object: &'static str, syntax: Syntax, description: &'static str) -> Self {
        Self { object, syntax: Some(syntax), description }
    }
}

impl Capabilities {
    /// The statement's identifier: what sysORID says.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`].
    pub fn id(&self) -> Result<Oid, OidError> {
        let above: Vec<u32> = self.above.iter().map(|(_, number)| *number).collect();
        Oid::concat([&[1, 3, 6, 1, 4, 1], &above[..], &[self.root_number, self.number]])
    }

    /// The text of the module. All groups of `of` are included.
    #[must_use]
    pub fn text<C>(&self, of: &'static Module<C>) -> String {
        let mut out = String::new();
        #[expect(clippy::expect_used, reason = "a String takes all that is written to it")]
        self.print(&mut out, of).expect("writing to a String does not fail");
        out
    }

    fn print<C>(&self, out: &mut String, of: &'static Module<C>) -> fmt::Result {
        let has_integers =
            self.variations.iter().any(|one| matches!(one.syntax, Some(Syntax::Integer32(_))));
        let integers = if has_integers { " Integer32," } else { "" };
        writeln!(out, "{} DEFINITIONS ::= BEGIN", self.module)?;
        writeln!(out, "\nIMPORTS\n    MODULE-IDENTITY,{integers} {TOP}\n        FROM SNMPv2-SMI")?;
        writeln!(out, "    AGENT-CAPABILITIES\n        FROM SNMPv2-CONF;")?;
        text::identity(out, self.root, &self.identity)?;
        let parent = self.above.last().map_or(TOP, |(name, _)| name);
        writeln!(out, "    ::= {{ {parent} {} }}\n", self.root_number)?;
        let mut parent = TOP;
        for (name, number) in self.above {
            writeln!(out, "{name} OBJECT IDENTIFIER ::= {{ {parent} {number} }}")?;
            parent = name;
        }
        writeln!(out, "\n{} AGENT-CAPABILITIES", self.name)?;
        writeln!(out, "    PRODUCT-RELEASE \"{}\"", self.product)?;
        text::status(out, self.description)?;
        writeln!(out, "    SUPPORTS     {}", of.root.module())?;
        let groups: Vec<_> = of.groups.iter().map(|group| group.name).collect();
        text::list(out, "INCLUDES", &groups)?;
        for variation in self.variations {
            writeln!(out, "    VARIATION    {}", variation.object)?;
            if let Some(syntax) = &variation.syntax {
                writeln!(out, "    SYNTAX       {}", Clause(syntax))?;
            }
            text::description(out, variation.description)?;
        }
        writeln!(out, "    ::= {{ {} {} }}\n\nEND", self.root, self.number)
    }
}

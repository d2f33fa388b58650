//! AGENT-CAPABILITIES (RFC 2580 section 6): what an agent implements of a module, and where it differs.

use std::fmt::{self, Write};

use super::{
    Identity, Module, Syntax,
    text::{self, Clause},
};
use crate::snmp::{Oid, OidError};

/// A module with one statement about one other module.
#[derive(Debug)]
pub struct Capabilities {
    /// Name of the module.
    pub module: &'static str,
    /// Descriptor of its MODULE-IDENTITY.
    pub root: &'static str,
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
    /// The statement's identifier below a root: what sysORID says.
    ///
    /// # Errors
    ///
    /// [`OidError::TooLong`].
    pub fn id(&self, root: &Oid) -> Result<Oid, OidError> {
        Oid::concat([root.parts(), &[self.number]])
    }

    /// The text of the module with this root. All groups of `of` are included.
    #[must_use]
    pub fn text<C>(&self, of: &'static Module<C>, root: &Oid) -> String {
        let mut out = String::new();
        #[expect(clippy::expect_used, reason = "a String takes all that is written to it")]
        self.print(&mut out, of, root).expect("writing to a String does not fail");
        out
    }

    fn print<C>(&self, out: &mut String, of: &'static Module<C>, root: &Oid) -> fmt::Result {
        let (parent, numbers) = text::place_of_root(root);
        let has_integers =
            self.variations.iter().any(|one| matches!(one.syntax, Some(Syntax::Integer32(_))));
        let integers = if has_integers { " Integer32," } else { "" };
        writeln!(out, "{} DEFINITIONS ::= BEGIN", self.module)?;
        writeln!(
            out,
            "\nIMPORTS\n    MODULE-IDENTITY,{integers} {parent}\n        FROM SNMPv2-SMI"
        )?;
        writeln!(out, "    AGENT-CAPABILITIES\n        FROM SNMPv2-CONF;")?;
        text::identity(out, self.root, &self.identity)?;
        writeln!(out, "    ::= {{ {parent} {numbers} }}")?;
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

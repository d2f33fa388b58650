//! The engine that serves MIB modules (SMIv2: RFC 2578, 2579, 2580) out of tables.
//!
//! A [`Module`] is data: conventions, objects with a getter and perhaps a setter, notifications, groups and
//! compliance statements. [`Tree`] answers Get, GetNext and the phases of a SET over a list of modules, and
//! [`text()`] prints one. The engine knows nothing of what is served: `C`, the context, is whatever the getters
//! read.
//!
//! Reading order: [`Syntax`] is what a value may be, [`Object`] one OBJECT-TYPE with its getter and setter,
//! [`Rows`] how the rows of a table are found, [`Table`] and [`Scalars`] the objects that stand together,
//! [`Module`] all of these, [`Tree`] the modules below their root identifiers.

mod capabilities;
#[cfg(test)]
mod check;
mod conformance;
pub mod convention;
mod imports;
mod module;
mod notification;
mod object;
mod rows;
mod syntax;
mod table;
mod text;
mod tree;

pub use capabilities::{Capabilities, Variation};
#[cfg(test)]
pub(super) use check::check;
pub use conformance::{Compliance, Group, Members};
pub use module::{Identity, Module};
pub use notification::Notification;
pub use object::{Access, Getter, Object, ObjectType, Setter};
pub use rows::{Index, Rows, Single};
pub use syntax::{Convention, Syntax};
pub use table::{Branch, Indexed, Node, ObjectRef, Scalars, Served, Suffix, Table, TableType};
pub use text::text;
pub use tree::{Instances, Tree, TreeError};

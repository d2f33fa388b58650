//! The MIB modules that the agent serves, and the engine under them. Does no I/O.
//!
//! [`smi`] answers requests out of tables and knows nothing of VMs. Each module is a folder of tables ([`vm_mib`]);
//! [`modules`] lists them. Their getters read a [`Snapshot`] ([`context`]).

pub mod context;
pub mod smi;
pub mod vm_mib;

pub use context::{NotificationSwitches, Snapshot};
pub use vm_mib::ROOT as VM_MIB;

use crate::snmp::Oid;
use smi::{Module, Tree, TreeError};

/// The modules, and where the root of each is.
#[must_use]
pub fn modules() -> Vec<(Oid, &'static Module<Snapshot>)> {
    vec![(vm_mib::ROOT, &vm_mib::MODULE)]
}

/// The modules, ready to be served.
///
/// # Errors
///
/// [`TreeError`] where one is within another.
pub fn tree() -> Result<Tree<Snapshot>, TreeError> {
    Tree::new(modules())
}

/// What the master's sysORTable says of the modules: for each the identifier of the statement of what the agent implements of
/// it (RFC 3418), or of the module where there is none, and a text.
#[must_use]
pub fn resources() -> Vec<(Oid, String)> {
    let resource = |(root, module): (Oid, &'static Module<Snapshot>)| {
        let statement = (root == vm_mib::ROOT).then(|| vm_mib::CAPABILITIES.id().ok()).flatten();
        (statement.unwrap_or(root), module.capabilities.to_owned())
    };
    modules().into_iter().map(resource).collect()
}

/// The text of the statement of what the agent implements of VM-MIB.
#[must_use]
pub fn capabilities_text() -> String {
    vm_mib::CAPABILITIES.text(&vm_mib::MODULE)
}

/// The text of VM-MIB.
#[must_use]
pub fn text() -> String {
    smi::text(&vm_mib::MODULE, &vm_mib::ROOT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_agrees_with_itself() {
        for (root, module) in modules() {
            smi::check(module, &root);
        }
    }
}

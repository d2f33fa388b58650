//! What the types of the tables do not enforce, for the tests of a module.

use std::collections::BTreeMap;

use super::{Access, Branch, Members, Module, text};
use crate::snmp::Oid;

/// Fails where the module does not agree with itself, or does not print well.
pub(crate) fn check<C>(module: &'static Module<C>, root: &Oid) {
    let name = module.root.module();
    let branches = module.branches.iter().map(|branch| *branch as &dyn Branch);
    let objects: Vec<_> = branches.clone().flat_map(Branch::object_types).collect();
    let notifications: Vec<_> = module.notifications.iter().copied().flatten().collect();

    // Every accessible object, and every notification, is in exactly one group.
    let mut grouped: BTreeMap<&str, u32> = BTreeMap::new();
    for member in module.groups.iter().flat_map(|group| group.members.names()) {
        *grouped.entry(member).or_default() += 1;
    }
    let accessible = objects.iter().filter(|object| object.access != Access::NotAccessible);
    let expected = accessible
        .map(|object| (object.name, 1))
        .chain(notifications.iter().map(|notification| (notification.name, 1)))
        .collect();
    assert_eq!(grouped, expected, "{name}");
    for group in module.groups {
        match group.members {
            Members::Objects(_) => assert!(!group.members.names().is_empty(), "{}", group.name),
            Members::Notifications(some) => assert!(!some.is_empty(), "{}", group.name),
        }
    }

    // Numbers ascend: columns and scalars, tables, notifications, groups.
    for branch in branches {
        let numbers: Vec<_> = branch.object_types().iter().map(|object| object.number).collect();
        assert!(numbers.is_sorted_by(|one, other| one < other), "{branch:?}");
        if branch.table_type().is_some() {
            assert!(!branch.index().is_empty(), "{branch:?} has no index");
        }
    }
    assert!(notifications.is_sorted_by(|one, other| one.number < other.number), "{name}");
    assert!(module.groups.is_sorted_by(|one, other| one.number < other.number), "{name}");

    // Notifications carry objects, and compliances name groups, of the module.
    for notification in &notifications {
        for object in notification.objects {
            let is_there = objects.iter().any(|own| own.name == object.object_type.name);
            assert!(is_there && object.module == name, "{object:?} in {}", notification.name);
        }
    }
    for statement in module.compliances {
        let conditional = statement.conditional.iter().map(|(group, _)| group);
        for group in statement.mandatory.iter().chain(conditional) {
            let is_own = module.groups.iter().any(|own| own.name == group.name);
            assert!(is_own, "{} in {}", group.name, statement.name);
        }
    }

    // The printed module has short lines, and no quotation mark within a text.
    let texts = objects.iter().map(|object| object.description);
    let texts = texts.chain(module.conventions.iter().map(|convention| convention.description));
    let texts = texts.chain(notifications.iter().map(|notification| notification.description));
    for description in texts {
        assert!(!description.is_empty() && !description.contains('"'), "{description}");
    }
    let text = text(module, root);
    for line in text.lines() {
        assert!(line.len() <= 72 && line == line.trim_end() && line.is_ascii(), "{line:?}");
    }
    assert_eq!(text.matches('"').count() % 2, 0, "{name}");
}

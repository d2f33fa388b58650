//! A made-up module beside VM-MIB, with everything that VM-MIB has not: objects of every type that can be set, a
//! table that augments one of VM-MIB's, an index with a string in it, and a root that is known only at run time.
//!
//! What can be set is a thread's own, so that tests do not see each other's.

use std::{cell::Cell, cell::RefCell};

use kvmeter::{
    agentx::{SetError, SetFailed},
    inventory::{Nic, Vm},
    mib::{
        Snapshot,
        smi::{
            Compliance, Convention, Group, Identity, Indexed, Members, Module, Node, Notification,
            Object, ObjectRef, Rows, Scalars, Setter, Single, Syntax, Table, TableType,
            convention::{ADMIN_STRING, TRUTH_VALUE},
        },
        vm_mib::{rows::Vms, vm},
    },
    snmp::{Oid, Value},
    values::nic_if_index,
};

static ROOT: Node = Node::root("SECOND-MIB", "secondMIB");
static NOTIFICATIONS: Node = Node::below(&ROOT, 0, "secondNotifications");
static OBJECTS: Node = Node::below(&ROOT, 1, "secondObjects");
static CONFORMANCE: Node = Node::below(&ROOT, 2, "secondConformance");
static COMPLIANCES: Node = Node::below(&CONFORMANCE, 1, "secondCompliances");
static GROUPS: Node = Node::below(&CONFORMANCE, 2, "secondGroups");

/// What of it can be set. Octets and identifiers are one of a few, as a value is borrowed from where it is.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) limit: Cell<u32>,
    pub(crate) name: Cell<usize>,
    pub(crate) target: Cell<usize>,
    pub(crate) address: Cell<[u8; 4]>,
    pub(crate) flags: Cell<usize>,
    pub(crate) is_on: Cell<i32>,
    /// Of all VMs.
    pub(crate) weight: Cell<i32>,
    /// Commits of `secondLimit` fail.
    pub(crate) is_broken: Cell<bool>,
    /// What was done with `secondLimit`.
    pub(crate) log: RefCell<Vec<String>>,
}

thread_local! {
    pub(crate) static STATE: State = State::default();
}

const NAMES: [&[u8]; 3] = [b"", b"first", "zwölf".as_bytes()];
const FLAGS: [&[u8]; 3] = [&[], &[0x80], &[0x80, 0x40]];
static TARGETS: [Oid; 2] = [Oid::of(&[0, 0]), Oid::of(&[1, 3, 6, 1, 2, 1, 236, 1, 4, 1, 2, 1])];

/// The index of one of a few values.
fn one_of<'a>(
    values: impl Iterator<Item = Value<'a>>,
    wanted: Value<'_>,
) -> Result<usize, SetFailed> {
    values.into_iter().position(|value| value == wanted).ok_or(SetFailed)
}

static FLAGS_CONVENTION: Convention = Convention {
    name: "SecondFlags",
    module: None,
    hint: None,
    syntax: Syntax::Bits(&[("first", 0), ("second", 9)]),
    description: "Two flags.",
};

type Scalar = Object<Snapshot, Single>;

static SCALARS: Scalars<Snapshot> = Scalars {
    parent: &OBJECTS,
    objects: &[
        Scalar::read_write(
            1,
            "secondLimit",
            Syntax::Unsigned32(&[(0, 100)]),
            "An even number.",
            |_, ()| STATE.with(|state| Some(Value::Gauge32(state.limit.get()))),
            Setter::new(|_, (), value| log_limit("commit", value))
                .with_test(|_, (), value| match value {
                    Value::Gauge32(limit) if limit % 2 == 0 => Ok(()),
                    _ => Err(SetError::InconsistentValue),
                })
                .with_undo(|_, (), before| log_limit("undo", before))
                .with_cleanup(|_, (), value| {
                    STATE.with(|state| state.log.borrow_mut().push(format!("cleanup {value:?}")));
                }),
        ),
        Scalar::read_write(
            2,
            "secondName",
            ADMIN_STRING,
            "One of three names.",
            |_, ()| STATE.with(|state| Some(Value::OctetString(NAMES[state.name.get()]))),
            Setter::new(|_, (), value| {
                let name = one_of(NAMES.into_iter().map(Value::OctetString), value)?;
                STATE.with(|state| state.name.set(name));
                Ok(())
            }),
        ),
        Scalar::read_write(
            3,
            "secondTarget",
            Syntax::ObjectIdentifier,
            "One of two objects.",
            |_, ()| STATE.with(|state| Some(Value::ObjectIdentifier(&TARGETS[state.target.get()]))),
            Setter::new(|_, (), value| {
                let target = one_of(TARGETS.iter().map(Value::ObjectIdentifier), value)?;
                STATE.with(|state| state.target.set(target));
                Ok(())
            }),
        ),
        Scalar::read_write(
            4,
            "secondAddress",
            Syntax::IpAddress,
            "An address.",
            |_, ()| STATE.with(|state| Some(Value::IpAddress(state.address.get()))),
            Setter::new(|_, (), value| match value {
                Value::IpAddress(address) => {
                    STATE.with(|state| state.address.set(address));
                    Ok(())
                }
                _ => Err(SetFailed),
            }),
        ),
        Scalar::read_write(
            5,
            "secondFlags",
            Syntax::Convention(&FLAGS_CONVENTION),
            "Some flags.",
            |_, ()| STATE.with(|state| Some(Value::OctetString(FLAGS[state.flags.get()]))),
            Setter::new(|_, (), value| {
                let flags = one_of(FLAGS.into_iter().map(Value::OctetString), value)?;
                STATE.with(|state| state.flags.set(flags));
                Ok(())
            }),
        ),
        Scalar::read_write(
            6,
            "secondIsOn",
            Syntax::Convention(&TRUTH_VALUE),
            "A switch, which is there while it has a value.",
            |_, ()| match STATE.with(|state| state.is_on.get()) {
                0 => None,
                is_on => Some(Value::Integer(is_on)),
            },
            Setter::new(|_, (), value| match value {
                Value::Integer(is_on) => {
                    STATE.with(|state| state.is_on.set(is_on));
                    Ok(())
                }
                _ => Err(SetFailed),
            }),
        ),
        Scalar::read_only(7, "secondTicks", Syntax::TimeTicks, "A time.", |_, ()| {
            Some(Value::TimeTicks(u32::MAX))
        }),
        Scalar::read_only(8, "secondOpaque", Syntax::Opaque, "Anything.", |_, ()| {
            Some(Value::Opaque(&[0x9f, 0x78, 4, 0x42, 0xf6, 0, 0]))
        }),
    ],
};

fn log_limit(what: &str, value: Value<'_>) -> Result<(), SetFailed> {
    STATE.with(|state| {
        state.log.borrow_mut().push(format!("{what} {value:?}"));
        match value {
            Value::Gauge32(limit) if !state.is_broken.get() => {
                state.limit.set(limit);
                Ok(())
            }
            _ => Err(SetFailed),
        }
    })
}

/// AUGMENTS a table of another module.
static VM_TABLE: Table<Snapshot, Vms> = Table {
    table_type: TableType {
        parent: &OBJECTS,
        number: 9,
        name: "secondVmTable",
        row: "secondVmEntry",
        index: Indexed::Augments(&vm::TABLE),
        description: "More of the virtual machines.",
        row_description: "More of one virtual machine.",
    },
    columns: &[
        Object::read_only(
            1,
            "secondVmTemperature",
            Syntax::Gauge32(&[]),
            "How warm it is.",
            |_, vm| Some(Value::Gauge32(temperature(vm))),
        ),
        Object::read_only(
            2,
            "secondVmFaults",
            Syntax::Counter32,
            "Faults, where any are counted.",
            |_, vm| faults(vm).map(Value::Counter32),
        ),
        Object::read_write(
            3,
            "secondVmWeight",
            Syntax::Integer32(&[(0, 1000)]),
            "A weight, which can be set by the first one only.",
            |_, _| Some(Value::Integer(STATE.with(|state| state.weight.get()))),
            Setter::new(|_, _, value| match value {
                Value::Integer(weight) => {
                    STATE.with(|state| state.weight.set(weight));
                    Ok(())
                }
                _ => Err(SetFailed),
            })
            .with_test(|_, vm, _| (vm.index.0 == 1).then_some(()).ok_or(SetError::NotWritable)),
        ),
    ],
};

pub(crate) fn temperature(vm: &Vm) -> u32 {
    u32::MAX - vm.index.0
}

pub(crate) fn faults(vm: &Vm) -> Option<u32> {
    (vm.index.0 % 2 == 1).then_some(vm.cpu_number)
}

/// The network interfaces by VM and model: the index has a string of any length, which its length precedes.
struct Models;

/// An interface, the only one of the VM with its model.
type ModelRow<'a> = (&'a Vm, &'a Nic);

/// The rows of a VM in the order of their indexes.
pub(crate) fn models(vm: &Vm) -> Vec<(Oid, &Nic)> {
    let mut rows: Vec<_> =
        vm.nics.iter().filter_map(|nic| Some((model_index((vm, nic))?, nic))).collect();
    rows.sort_by_key(|(index, _)| *index);
    rows.dedup_by_key(|(index, _)| *index);
    rows
}

fn model_index((vm, nic): ModelRow<'_>) -> Option<Oid> {
    let mut index = Oid::of(&[vm.index.0, u32::try_from(nic.model.len()).ok()?]);
    for octet in nic.model.bytes() {
        index.push(octet.into()).ok()?;
    }
    Some(index)
}

impl Rows<Snapshot> for Models {
    type Index = Oid;
    type Row<'a> = ModelRow<'a>;

    fn at_or_after(snapshot: &Snapshot, at: Oid) -> Option<ModelRow<'_>> {
        let first = at.parts().first().copied().unwrap_or(0);
        snapshot.inventory().vms.find_map_from(first, |vm| {
            models(vm).into_iter().find(|(index, _)| *index >= at).map(|(_, nic)| (vm, nic))
        })
    }

    fn index(row: ModelRow<'_>) -> Oid {
        model_index(row).unwrap_or_default()
    }
}

static MODEL_TABLE: Table<Snapshot, Models> = Table {
    table_type: TableType {
        parent: &OBJECTS,
        number: 10,
        name: "secondModelTable",
        row: "secondModelEntry",
        index: Indexed::Below(&vm::TABLE),
        description: "The network interfaces by model.",
        row_description: "One model.",
    },
    columns: &[
        Object::index(1, "secondModelName", ADMIN_STRING, "The model."),
        Object::read_only(
            2,
            "secondModelIfIndex",
            Syntax::Unsigned32(&[]),
            "The ifIndex of the first one.",
            |_, (_, nic)| Some(Value::Gauge32(nic_if_index(nic).unwrap_or(0))),
        ),
    ],
};

const TEMPERATURE: ObjectRef = VM_TABLE.column("secondVmTemperature");

static ALL_NOTIFICATIONS: [Notification; 2] = [
    Notification {
        parent: &NOTIFICATIONS,
        number: 1,
        name: "secondHot",
        objects: &[TEMPERATURE],
        description: "A virtual machine is hot.",
    },
    Notification {
        parent: &NOTIFICATIONS,
        number: 2,
        name: "secondCold",
        objects: &[],
        description: "It is cold.",
    },
];

static OBJECT_GROUP: Group = Group {
    parent: &GROUPS,
    number: 1,
    name: "secondGroup",
    members: Members::Objects(&[&SCALARS, &VM_TABLE, &MODEL_TABLE]),
    description: "All objects.",
};

static NOTIFICATION_GROUP: Group = Group {
    parent: &GROUPS,
    number: 2,
    name: "secondNotificationGroup",
    members: Members::Notifications(&ALL_NOTIFICATIONS),
    description: "All notifications.",
};

/// The module.
pub(crate) static MODULE: Module<Snapshot> = Module {
    root: &ROOT,
    identity: Identity {
        organization: "None",
        contact: "Nobody.",
        description: "Objects that are made up.",
        revisions: &[("202601010000Z", "The first one.")],
    },
    capabilities: "A module that is made up",
    conventions: &[&FLAGS_CONVENTION],
    branches: &[&SCALARS, &VM_TABLE, &MODEL_TABLE],
    notifications: &[&ALL_NOTIFICATIONS],
    compliances: &[Compliance {
        parent: &COMPLIANCES,
        number: 1,
        name: "secondCompliance",
        description: "What an agent must have.",
        mandatory: &[&OBJECT_GROUP],
        conditional: &[(&NOTIFICATION_GROUP, "For agents that send notifications.")],
        may_be_read_only: &[&SCALARS],
    }],
    groups: &[&OBJECT_GROUP, &NOTIFICATION_GROUP],
};

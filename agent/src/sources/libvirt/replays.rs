//! Replays of recorded domain lives: libvirt's events, the state found after each (libvirt 9.0 and 11.3, QEMU 7.2 and 10.0, KVM), and the
//! notifications that they must lead to, whether events come one by one or in one batch, and the state is found in time or late.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::c_int,
    time::Instant,
};

use virt::{
    domain::{
        DomainCrashedReason, DomainPausedReason as Why, DomainRunningReason, DomainShutdownReason,
        DomainShutoffReason as End, DomainState, DomainStateReason as Reason,
    },
    enumutil::Enum,
};

use super::{connection, state, transitions::Transitions};
use crate::inventory::{
    AutoStart, Change, ChangeEvent, Core, CoreConfig, Domain, DomainFact, DomainProcess, Fact,
    Memory, Now, OperState, Output, Persistence, SavedIndexes, SourceId, VmUuid,
};

const DOMAIN: VmUuid = VmUuid::of_bytes([7; 16]);

/// The state of the domain that is found after events.
#[derive(Clone, Copy, Debug)]
enum Snapshot {
    Running,
    Paused(Why),
    Shutdown,
    Off(End),
    /// Off, with a managed save.
    Saved,
    Crashed,
    Gone,
}

/// Events as virDomainEventType and detail, and the state found after them.
type Step = (&'static [(c_int, c_int)], Snapshot);

const DEFINED: (c_int, c_int) = (0, 0);
const UNDEFINED: (c_int, c_int) = (1, 0);
const STARTED: c_int = 2;
const SUSPENDED: c_int = 3;
const RESUMED: c_int = 4;
const STOPPED: c_int = 5;
const SHUTDOWN: c_int = 6;
const CRASHED: c_int = 8;

const BOOT: [Step; 3] = [
    (&[DEFINED], Snapshot::Off(End::Unknown)),
    (&[(RESUMED, 0)], Snapshot::Running),
    (&[(STARTED, 0)], Snapshot::Running),
];
const BOOTED: Notified = (1, 11);

/// The notification's number below vmNotifications, and vmOperState in it.
type Notified = (u32, i32);

struct Life {
    name: &'static str,
    steps: &'static [Step],
    expected: &'static [Notified],
}

/// After [`BOOT`] and [`BOOTED`].
const LIVES: [Life; 18] = [
    Life {
        name: "saved to a file of the user's",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::Save)),
            (&[(STOPPED, 4)], Snapshot::Off(End::Saved)),
        ],
        expected: &[(5, 4), (3, 5)],
    },
    Life {
        name: "destroyed, undefined and defined again",
        steps: &[
            (&[(SHUTDOWN, 2)], Snapshot::Off(End::Destroyed)),
            (&[(STOPPED, 1)], Snapshot::Off(End::Destroyed)),
            (&[UNDEFINED, DEFINED, (RESUMED, 0), (STARTED, 0)], Snapshot::Running),
        ],
        expected: &[(2, 4), (3, 10), (10, 11), (1, 11)],
    },
    Life {
        name: "paused and resumed",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::User)),
            (&[(RESUMED, 0)], Snapshot::Running),
        ],
        expected: &[(4, 4), (1, 8)],
    },
    Life {
        name: "paused by a full disk, found before libvirt knew the reason, and resumed",
        steps: &[
            (&[(SUSPENDED, 2)], Snapshot::Paused(Why::Unknown)),
            (&[], Snapshot::Paused(Why::IOError)),
            (&[(RESUMED, 0)], Snapshot::Running),
            (&[(SUSPENDED, 2)], Snapshot::Paused(Why::IOError)),
        ],
        expected: &[(4, 4), (1, 8), (4, 4)],
    },
    Life {
        name: "saved and restored",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::Save)),
            (&[], Snapshot::Paused(Why::Save)),
            (&[(STOPPED, 4)], Snapshot::Saved),
            (&[(STARTED, 2)], Snapshot::Paused(Why::Migration)),
            (&[], Snapshot::Paused(Why::Migration)),
            (&[(RESUMED, 2)], Snapshot::Running),
        ],
        expected: &[(5, 4), (6, 5), (7, 6), (1, 7)],
    },
    Life {
        name: "saved and restored by libvirt 11",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::Save)),
            (&[], Snapshot::Shutdown),
            (&[(SHUTDOWN, 2)], Snapshot::Shutdown),
            (&[(STOPPED, 4)], Snapshot::Saved),
            (&[(STARTED, 2)], Snapshot::Paused(Why::Migration)),
            (&[(RESUMED, 2)], Snapshot::Running),
        ],
        expected: &[(5, 4), (6, 5), (7, 6), (1, 7)],
    },
    Life {
        name: "saved to a file of the user's by libvirt 11",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::Save)),
            (&[(SHUTDOWN, 2)], Snapshot::Shutdown),
            (&[(STOPPED, 4)], Snapshot::Off(End::Saved)),
        ],
        expected: &[(5, 4), (3, 5)],
    },
    Life {
        name: "migrated away by libvirt 11",
        steps: &[
            (&[(SUSPENDED, 1)], Snapshot::Paused(Why::Migration)),
            (&[(SHUTDOWN, 2)], Snapshot::Shutdown),
            (&[(STOPPED, 3)], Snapshot::Off(End::Migrated)),
        ],
        expected: &[(8, 4), (3, 9)],
    },
    Life {
        name: "migration given up, and switched off by the guest",
        steps: &[
            (&[(SUSPENDED, 1)], Snapshot::Paused(Why::Migration)),
            (&[(RESUMED, 0)], Snapshot::Running),
            (&[(SHUTDOWN, 1)], Snapshot::Shutdown),
            (&[(STOPPED, 0)], Snapshot::Off(End::Shutdown)),
        ],
        expected: &[(8, 4), (1, 9), (2, 4), (3, 10)],
    },
    Life {
        name: "switched off by the guest",
        steps: &[
            (&[(SHUTDOWN, 1)], Snapshot::Shutdown),
            (&[(STOPPED, 0)], Snapshot::Off(End::Shutdown)),
        ],
        expected: &[(2, 4), (3, 10)],
    },
    Life {
        name: "destroyed",
        steps: &[
            (&[(SHUTDOWN, 2)], Snapshot::Off(End::Destroyed)),
            (&[(STOPPED, 1)], Snapshot::Off(End::Destroyed)),
        ],
        expected: &[(2, 4), (3, 10)],
    },
    Life {
        name: "panicked, preserved, and destroyed",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Crashed),
            (&[(CRASHED, 0)], Snapshot::Crashed),
            (&[(SHUTDOWN, 2)], Snapshot::Off(End::Destroyed)),
            (&[(STOPPED, 1)], Snapshot::Off(End::Destroyed)),
        ],
        expected: &[(9, 4), (2, 12), (3, 10)],
    },
    Life {
        name: "panicked, and was found before libvirt knew the reason of the pause",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Paused(Why::Unknown)),
            (&[(CRASHED, 0)], Snapshot::Crashed),
        ],
        expected: &[(9, 4)],
    },
    Life {
        name: "its QEMU was killed",
        steps: &[(&[(STOPPED, 5)], Snapshot::Off(End::Crashed))],
        expected: &[(9, 4)],
    },
    Life {
        name: "its QEMU was killed, and the state was found before the event",
        steps: &[
            (&[], Snapshot::Off(End::Crashed)),
            (&[(STOPPED, 5)], Snapshot::Off(End::Crashed)),
        ],
        expected: &[(9, 4)],
    },
    Life {
        name: "migrated away and undefined",
        steps: &[
            (&[], Snapshot::Running),
            (&[(SUSPENDED, 1)], Snapshot::Paused(Why::Migration)),
            (&[], Snapshot::Paused(Why::Migration)),
            (&[(STOPPED, 3)], Snapshot::Off(End::Migrated)),
            (&[UNDEFINED], Snapshot::Gone),
        ],
        expected: &[(8, 4), (3, 9), (10, 11)],
    },
    Life {
        name: "undefined, then destroyed",
        steps: &[
            (&[UNDEFINED], Snapshot::Running),
            (&[(SHUTDOWN, 2)], Snapshot::Gone),
            (&[(STOPPED, 1)], Snapshot::Gone),
        ],
        expected: &[(2, 4), (3, 10), (10, 11)],
    },
    Life {
        name: "paused and resumed twice before the state is queried",
        steps: &[
            (&[(SUSPENDED, 0)], Snapshot::Running),
            (&[(RESUMED, 0), (SUSPENDED, 0)], Snapshot::Running),
            (&[(RESUMED, 0)], Snapshot::Running),
        ],
        expected: &[(4, 4), (1, 8), (4, 4), (1, 8)],
    },
];

/// An incoming migration of a domain that was unknown before.
const ARRIVAL: Life = Life {
    name: "arrived from another host",
    steps: &[
        (&[(STARTED, 1)], Snapshot::Paused(Why::Migration)),
        (&[(RESUMED, 1)], Snapshot::Running),
    ],
    expected: &[(8, 11), (1, 9)],
};

#[test]
fn recorded_lives_are_told_as_they_were() {
    for life in LIVES {
        expect(life.name, &BOOT, life.steps, &[&[BOOTED], life.expected].concat());
    }
    // Also who is not known before.
    expect(ARRIVAL.name, &[], ARRIVAL.steps, ARRIVAL.expected);
}

/// `steps` one by one, and all at once.
fn expect(name: &str, before: &[Step], steps: &[Step], expected: &[Notified]) {
    let owned = |steps: &[Step]| -> Vec<(Vec<_>, Snapshot)> {
        steps.iter().map(|(events, found)| (events.to_vec(), *found)).collect()
    };
    let all = steps.iter().flat_map(|(events, _)| events.to_vec()).collect();
    let at_once = vec![(all, steps.last().unwrap().1)];
    assert_eq!(told(&[owned(before), owned(steps)].concat()), expected, "{name}");
    assert_eq!(told(&[owned(before), at_once].concat()), expected, "{name}, at once");
    // What a pause is the beginning of cannot be seen by who comes late; all else can.
    if expected.iter().all(|(number, _)| matches!(number, 1..=4 | 10)) {
        let late = steps.iter().map(|(events, _)| (events.to_vec(), steps.last().unwrap().1));
        let all = [owned(before), late.collect()].concat();
        assert_eq!(told(&all), expected, "{name}, found ahead of its events");
    }
}

/// The notifications that steps lead to.
fn told(steps: &[(Vec<(c_int, c_int)>, Snapshot)]) -> Vec<Notified> {
    let now = Now { instant: Instant::now(), since_boot_ns: 1 };
    let config =
        CoreConfig { connections: vec![connection("qemu:///system")], ..CoreConfig::default() };
    let mut core = Core::new(config, SavedIndexes::default(), now);
    let mut report = |fact| core.handle(Fact::Libvirt(SourceId(0), fact), now);
    report(DomainFact::Listed(Vec::new(), BTreeSet::new()));
    let mut transitions = Transitions::default();
    for (events, found) in steps {
        let mut domain = domain(*found);
        let changes =
            transitions.apply(DOMAIN, events, domain.as_mut().map(|domain| &mut domain.state));
        let events = changes.into_iter().map(|change| (DOMAIN, change)).collect();
        report(DomainFact::Changed { domains: BTreeMap::from([(DOMAIN, domain)]), events });
    }
    let change = |output| match output {
        Output::Changed(change) => Some(change),
        _ => None,
    };
    let outputs = std::iter::from_fn(|| core.poll_output());
    outputs.filter_map(change).map(|change| (number(&change), change.before as i32)).collect()
}

/// The place of the notification below vmNotifications.
fn number(change: &Change) -> u32 {
    match change.event {
        ChangeEvent::State(OperState::Running) => 1,
        ChangeEvent::State(OperState::Shuttingdown) => 2,
        ChangeEvent::State(OperState::Shutdown) => 3,
        ChangeEvent::State(OperState::Paused) => 4,
        ChangeEvent::State(OperState::Suspending) => 5,
        ChangeEvent::State(OperState::Suspended) => 6,
        ChangeEvent::State(OperState::Resuming) => 7,
        ChangeEvent::State(OperState::Migrating) => 8,
        ChangeEvent::State(OperState::Crashed) => 9,
        ChangeEvent::Deleted => 10,
        ChangeEvent::State(other) => panic!("{other:?} has no notification"),
    }
}

fn domain(found: Snapshot) -> Option<Domain> {
    let known = Enum::Known;
    let (state, reason, saved) = match found {
        Snapshot::Running => {
            (DomainState::Running, Reason::Running(known(DomainRunningReason::Booted)), false)
        }
        Snapshot::Paused(why) => (DomainState::Paused, Reason::Paused(Enum::Known(why)), false),
        Snapshot::Shutdown => (
            DomainState::Shutdown,
            Reason::Shutdown(Enum::Known(DomainShutdownReason::Unknown)),
            false,
        ),
        Snapshot::Off(end) => (DomainState::Shutoff, Reason::Shutoff(Enum::Known(end)), false),
        Snapshot::Saved => (DomainState::Shutoff, Reason::Shutoff(Enum::Known(End::Saved)), true),
        Snapshot::Crashed => (
            DomainState::Crashed,
            Reason::Crashed(Enum::Known(DomainCrashedReason::Panicked)),
            false,
        ),
        Snapshot::Gone => return None,
    };
    Some(Domain {
        uuid: DOMAIN,
        name: "recorded".to_owned(),
        os_type: String::new(),
        state: state::found(Enum::Known(state), Enum::Known(reason), saved),
        is_active: !matches!(found, Snapshot::Off(_) | Snapshot::Saved),
        auto_start: AutoStart::Disabled,
        persistence: Persistence::Persistent,
        process: DomainProcess::Untold,
        user: None,
        machine: None,
        cpus: Some(1),
        max_cpus: Some(1),
        vcpu_ids: Vec::new(),
        memory: Memory::default(),
        disks: Vec::new(),
        nics: Vec::new(),
    })
}

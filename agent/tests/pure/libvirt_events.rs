//! Domains of libvirt's built-in test driver, which lives in this process and needs no daemon: every change is
//! there soon after its event.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use kvmeter::{
    agentx::{Lookup, Objects as _},
    counters::NoCounters,
    inventory::{
        Change, ChangeEvent, CoreConfig,
        OperState::{self, Paused, Running, Shutdown, Suspended},
        Registry, SourceId,
    },
    mib,
    run::{
        self,
        inventory_thread::{Outlets, Setup},
    },
    snmp::{Oid, Value},
    sources::{Source as _, libvirt},
};
use virt::{connect::Connect, sys};
use xtask::lab::{PATIENCE, wait_until};

/// From an event of libvirt to the value that a GET finds.
const SOON: Duration = Duration::from_millis(100);

struct Host {
    connection: Connect,
    registry: Arc<Registry>,
    source: Arc<libvirt::Handle>,
    changes: mpsc::Receiver<Change>,
    inventory: run::inventory_thread::Inventory,
    _state: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        const URI: &str = "test:///default";
        let state = tempfile::tempdir().unwrap();
        let (sender, changes) = mpsc::channel();
        let config =
            CoreConfig { connections: vec![libvirt::connection(URI)], ..CoreConfig::default() };
        let setup = Setup::new(config, state.path());
        let registry = Arc::clone(&setup.registry);
        let (facts, slow) = (setup.facts.clone(), Arc::clone(&setup.slow));
        let source = libvirt::start(SourceId(0), URI.to_owned(), None, facts, slow).unwrap();
        let outlets = Outlets {
            sources: vec![Arc::<libvirt::Handle>::clone(&source)],
            counting: None,
            on_change: Box::new(move |change| drop(sender.send(change))),
        };
        let (inventory, _) = setup.start(outlets).unwrap();
        let mut host = Self {
            connection: Connect::open(Some(URI)).unwrap(),
            registry,
            source,
            changes,
            inventory,
            _state: state,
        };
        wait_until(PATIENCE, "libvirt is live", || {
            (host.source.health().state == "live").then_some(())
        })
        .unwrap();
        // The source is live a moment before the view has what it reported.
        assert!(host.inventory.flush(PATIENCE));
        host
    }

    /// The integer at vmObjects.`parts`, as a GET finds it.
    fn integer(&self, parts: &[u32]) -> Option<i32> {
        let tree = mib::tree().unwrap();
        let snapshot =
            mib::Snapshot::of_counters(Arc::clone(&self.registry.view()), Arc::new(NoCounters));
        let served = tree.instances(snapshot);
        let name = Oid::of(&[&[1, 3, 6, 1, 2, 1, 236, 1], parts].concat());
        match served.get(&name) {
            Lookup::Found(Value::Integer(number)) => Some(number),
            _ => None,
        }
    }

    /// The same with a text.
    fn text(&self, parts: &[u32]) -> Option<String> {
        let tree = mib::tree().unwrap();
        let snapshot =
            mib::Snapshot::of_counters(Arc::clone(&self.registry.view()), Arc::new(NoCounters));
        let served = tree.instances(snapshot);
        let name = Oid::of(&[&[1, 3, 6, 1, 2, 1, 236, 1], parts].concat());
        match served.get(&name) {
            Lookup::Found(Value::OctetString(text)) => String::from_utf8(text.to_vec()).ok(),
            _ => None,
        }
    }

    fn index(&self, name: &str) -> Option<u32> {
        self.registry.view().vms.iter().find(|vm| vm.name == name).map(|vm| vm.index.0)
    }

    /// Does something, and waits for what a GET finds then.
    fn expect(&self, what: &str, act: impl FnOnce(), is_seen: impl Fn(&Self) -> bool) {
        act();
        let start = Instant::now();
        wait_until(PATIENCE, what, || is_seen(self).then_some(())).unwrap();
        assert!(start.elapsed() < SOON, "{what}: seen after {:?}", start.elapsed());
    }
}

/// One process has one test driver, so this is one test.
#[test]
fn each_change_of_a_domain_is_seen_soon() {
    let host = Host::new();
    let is = |state: OperState, index: u32| {
        move |host: &Host| host.integer(&[4, 1, 6, index]) == Some(state as i32)
    };
    // The driver has one domain from the beginning.
    let known = host.index("test").unwrap();
    assert!(is(Running, known)(&host));
    assert_eq!(host.integer(&[2, 0]), Some(1));

    let xml = |name: &str, uuid: u8| {
        format!(
            "<domain type='test'><name>{name}</name>\
             <uuid>0000000{uuid}-0000-0000-0000-000000000000</uuid><memory>8192</memory>\
             <vcpu current='1'>2</vcpu><os><type>hvm</type></os></domain>"
        )
    };
    let mut domain = None;
    host.expect(
        "defined",
        || domain = Some(host.connection.define_domain_xml(&xml("näme", 1)).unwrap()),
        |host| host.index("näme").is_some(),
    );
    let domain = domain.unwrap();
    let index = host.index("näme").unwrap();
    assert_eq!(host.integer(&[2, 0]), Some(2));
    assert!(is(Shutdown, index)(&host));
    // Persistent, one of two vCPUs, 8 MiB.
    assert_eq!(host.integer(&[4, 1, 8, index]), Some(2));
    assert_eq!(host.integer(&[4, 1, 9, index]), Some(1));
    assert_eq!(host.integer(&[4, 1, 11, index]), Some(2));
    assert_eq!(host.integer(&[4, 1, 13, index]), Some(8192));

    host.expect("started", || domain.create().unwrap(), is(Running, index));
    host.expect("paused", || domain.suspend().unwrap(), is(Paused, index));
    assert_eq!(host.integer(&[4, 1, 5, index]), Some(3));
    host.expect("resumed", || domain.resume().unwrap(), is(Running, index));
    host.expect("saved", || domain.managed_save(0).unwrap(), is(Suspended, index));
    host.expect("restored", || domain.create().unwrap(), is(Running, index));
    host.expect("shut down", || domain.shutdown().unwrap(), is(Shutdown, index));
    host.expect("started again", || domain.create().unwrap(), is(Running, index));
    host.expect("destroyed", || domain.destroy().unwrap(), is(Shutdown, index));
    host.expect(
        "undefined",
        || domain.undefine().unwrap(),
        |host| host.index("näme").is_none() && host.integer(&[2, 0]) == Some(1),
    );

    // Another takes the next index: the one that is away may come again.
    let mut transient = None;
    host.expect(
        "created",
        || {
            transient = Some(host.connection.create_domain_xml(&xml("other", 2), 0).unwrap());
        },
        |host| host.index("other").is_some(),
    );
    let other = host.index("other").unwrap();
    assert_ne!(other, index);
    assert_eq!(host.integer(&[4, 1, 8, other]), Some(3), "transient");
    host.expect(
        "defined again",
        || drop(host.connection.define_domain_xml(&xml("näme", 1)).unwrap()),
        |host| host.index("näme") == Some(index),
    );
    // Longer than SnmpAdminString: what is served ends with a whole character. QEMU's driver keeps a domain in a
    // file of its name, so that only others have such.
    let long = "ö".repeat(300);
    let mut domain = None;
    host.expect(
        "a long name",
        || domain = Some(host.connection.define_domain_xml(&xml(&long, 3)).unwrap()),
        |host| host.index(&long).is_some(),
    );
    let name = host.text(&[4, 1, 2, host.index(&long).unwrap()]).unwrap();
    assert_eq!(name, "ö".repeat(127));
    host.expect(
        "the long name is gone",
        || domain.unwrap().undefine().unwrap(),
        |host| host.index(&long).is_none(),
    );
    host.expect(
        "the transient one is gone with its end",
        || transient.unwrap().destroy().unwrap(),
        |host| host.index("other").is_none(),
    );

    // A storm: each domain many times, and at the end what is true.
    let domains = host.connection.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE).unwrap();
    assert_eq!(domains.len(), 1);
    for _ in 0..200 {
        domains[0].suspend().unwrap();
        domains[0].resume().unwrap();
    }
    host.expect("the storm is over", || {}, is(Running, known));

    // Each change of that was told once, in order, with the state before it.
    // What a GET finds may be ahead of the events that still wait.
    let mut told: Vec<Change> = Vec::new();
    wait_until(PATIENCE, "all changes are told", || {
        told.extend(host.changes.try_iter());
        let of_storm = told.iter().filter(|change| change.index.0 == known).count();
        (of_storm >= 400).then_some(())
    })
    .unwrap();
    let of = |index: u32| -> Vec<(OperState, ChangeEvent)> {
        let its = told.iter().filter(|change| change.index.0 == index);
        its.map(|change| (change.before, change.event)).collect()
    };
    let to = ChangeEvent::State;
    let expected = [
        (Shutdown, to(Running)),
        (Running, to(Paused)),
        (Paused, to(Running)),
        (Running, to(Suspended)),
        (Suspended, to(Running)),
        (Running, to(Shutdown)),
        (Shutdown, to(Running)),
        (Running, to(Shutdown)),
        (Shutdown, ChangeEvent::Deleted),
    ];
    // This driver tells of neither the beginning of a save nor of a restoration.
    assert_eq!(of(index), expected);
    assert_eq!(
        of(other),
        [(Shutdown, to(Running)), (Running, to(Shutdown)), (Shutdown, ChangeEvent::Deleted)]
    );
    let storm = of(known);
    assert_eq!(storm.len(), 400, "each pause and each resumption, once");
    for pair in storm.chunks(2) {
        assert_eq!(pair, [(Running, to(Paused)), (Paused, to(Running))]);
    }
    assert_eq!(host.source.health().state, "live");
}

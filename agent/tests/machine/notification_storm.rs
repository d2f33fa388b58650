//! A storm of changes: 300 domains of libvirt's test driver, which lives in this process, started, paused, resumed
//! and destroyed at once, through a real snmpd to a real snmptrapd.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Barrier},
    thread,
    time::{Duration, Instant},
};

use crate::lab::traps::notifications;
use kvmeter::{
    agentx::{self, TransportConfig},
    counters::NoCounters,
    inventory::{CoreConfig, SourceId},
    mib::{self, NotificationSwitches},
    notify,
    run::inventory_thread::{Outlets, Setup},
    sources::{Source as _, libvirt},
};
use virt::connect::Connect;
use xtask::lab::{PATIENCE, Snmpd, Snmptrapd, Way, wait_until};

const URI: &str = "test:///default";
const DOMAINS: u32 = 300;
const THREADS: u32 = 4;
const WINDOW: Duration = Duration::from_millis(200);

/// The notifications of each domain, which starts, is paused, resumes and is shut down: number, and state before.
const LIFE: [(u32, &str); 4] = [(1, "11"), (4, "4"), (1, "8"), (3, "4")];

#[test]
fn each_change_is_sent_once_and_none_is_missing_in_bulk() {
    require!("snmpd", "snmptrapd");
    let dir = tempfile::tempdir().unwrap();
    let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
    let snmpd = Snmpd::start(dir.path(), &snmptrapd.sinks(&[Way::Trap])).unwrap();
    let (sink, notifier, notices, notified) = notify::pipeline(WINDOW);
    let config =
        CoreConfig { connections: vec![libvirt::connection(URI)], ..CoreConfig::default() };
    let setup = Setup::new(config, &dir.path().join("state"));
    let (registry, slow) = (Arc::clone(&setup.registry), Arc::clone(&setup.slow));
    let facts = setup.facts.clone();
    let source =
        libvirt::start(SourceId(0), URI.to_owned(), None, facts, Arc::clone(&slow)).unwrap();
    let outlets = Outlets {
        sources: vec![Arc::<libvirt::Handle>::clone(&source)],
        counting: None,
        on_change: Box::new(move |change| sink.note(change)),
    };
    let (_inventory, _) = setup.start(outlets).unwrap();
    let statistics = Arc::new(agentx::Statistics::default());
    let mut transport = TransportConfig::new(
        snmpd.agentx_address().parse().unwrap(),
        agentx::Config::new(vec![mib::VM_MIB]),
    );
    transport.reconnect_max = Duration::from_secs(1);
    let (of_agent, of_session) = (Arc::clone(&registry), Arc::clone(&statistics));
    thread::spawn(move || {
        let switches = Arc::new(NotificationSwitches::new(true, true));
        let tree = mib::tree().unwrap();
        let readings: Arc<dyn kvmeter::counters::Readings> = Arc::new(NoCounters);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let of_notifier = Arc::clone(&switches);
            tokio::spawn(async move { notifier.run(&of_notifier).await });
            let objects = || {
                let (readings, slow) = (Arc::clone(&readings), Arc::clone(&slow));
                let switches = Arc::clone(&switches);
                tree.instances(mib::Snapshot::new(of_agent.view(), readings, slow, switches))
            };
            agentx::run(transport, objects, notices, &of_session, std::future::pending()).await;
        });
    });
    wait_until(PATIENCE, "libvirt is live and the session open", || {
        let is_open = statistics.phase() == agentx::Phase::Established;
        (is_open && source.health().state == "live").then_some(())
    })
    .unwrap();
    let connection = Connect::open(Some("test:///default")).unwrap();
    for number in 1..=DOMAINS {
        connection
            .define_domain_xml(&format!(
                "<domain type='test'><name>storm{number}</name>\
                 <uuid>0d0d0d0d-0000-0000-0000-{number:012}</uuid><memory>8192</memory>\
                 <vcpu>1</vcpu><os><type>hvm</type></os></domain>"
            ))
            .unwrap();
    }
    wait_until(PATIENCE, "all are there", || {
        (registry.view().vms.len() == DOMAINS as usize + 1).then_some(())
    })
    .unwrap();

    let begin = Arc::new(Barrier::new(THREADS as usize + 1));
    let makers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let begin = Arc::clone(&begin);
            thread::spawn(move || {
                let connection = Connect::open(Some("test:///default")).unwrap();
                let of_thread: Vec<_> = (1..=DOMAINS)
                    .filter(|number| number % THREADS == thread)
                    .map(|number| connection.lookup_domain_by_name(&format!("storm{number}")))
                    .collect::<Result<_, _>>()
                    .unwrap();
                begin.wait();
                for domain in &of_thread {
                    domain.create().unwrap();
                }
                for domain in &of_thread {
                    domain.suspend().unwrap();
                    domain.resume().unwrap();
                }
                for domain in &of_thread {
                    domain.destroy().unwrap();
                }
            })
        })
        .collect();
    begin.wait();
    let start = Instant::now();
    for maker in makers {
        maker.join().unwrap();
    }
    // The first window begins with the first change; the last may end after the last.
    let windows = start.elapsed().as_millis() / WINDOW.as_millis() + 2;
    let count = DOMAINS as usize * LIFE.len();
    let Received { lives, in_bulk } =
        wait_until(PATIENCE, "all notifications have been received", || {
            let received = Received::of(&notifications(&snmptrapd.received(Way::Trap)));
            let of_one: usize = received.lives.values().map(Vec::len).sum();
            // The last bulk notifications come one window after the last change.
            let is_all = |number| received.union(number).len() == DOMAINS as usize;
            (of_one >= count && [11, 13, 14].into_iter().all(is_all)).then_some(received)
        })
        .unwrap_or_else(|error| {
            panic!("{error}: {} of {count}, {notified:?}", snmptrapd.received(Way::Trap).len())
        });
    assert_eq!(lives.len(), DOMAINS as usize);
    for (index, life) in &lives {
        let life: Vec<(u32, &str)> =
            life.iter().map(|(number, before)| (*number, before.as_str())).collect();
        assert_eq!(life, LIFE, "vmIndex {index}");
    }
    let all: BTreeSet<u32> = lives.keys().copied().collect();
    assert_eq!(in_bulk.keys().copied().collect::<Vec<_>>(), [11, 13, 14]);
    for (number, lists) in &in_bulk {
        // A kind is sent again where a VM came into it after another kind: at most once for each change of a life.
        let most = LIFE.len() as u128 * windows;
        assert!(lists.len() as u128 <= most, "{number}: {} in {windows} windows", lists.len());
        let union: BTreeSet<u32> = lists.iter().flatten().copied().collect();
        assert_eq!(union, all, "no VM is missing in {number}");
    }
    assert_eq!(notified.dropped.load(std::sync::atomic::Ordering::Relaxed), 0);
}

/// The notifications received.
struct Received {
    /// By vmIndex: number and state before of each notification, in order.
    lives: BTreeMap<u32, Vec<(u32, String)>>,
    /// By number: the VMs of each bulk notification.
    in_bulk: BTreeMap<u32, Vec<BTreeSet<u32>>>,
}

impl Received {
    fn of(lines: &[String]) -> Self {
        let mut received = Self { lives: BTreeMap::new(), in_bulk: BTreeMap::new() };
        for line in lines {
            let (number, bindings) = line.split_once(": ").unwrap();
            let number: u32 = number.parse().unwrap();
            if let Some(value) = bindings.strip_prefix("1.11.0 = ") {
                received.in_bulk.entry(number).or_default().push(affected(value));
            } else {
                let (name, before) = bindings.rsplit_once(" = INTEGER: ").unwrap();
                let index = name.rsplit('.').next().unwrap().parse().unwrap();
                received.lives.entry(index).or_default().push((number, before.to_owned()));
            }
        }
        received
    }

    fn union(&self, number: u32) -> BTreeSet<u32> {
        self.in_bulk.get(&number).into_iter().flatten().flatten().copied().collect()
    }
}

/// vmAffectedVMs as snmptrapd prints it: as text where all octets can be printed.
fn affected(value: &str) -> BTreeSet<u32> {
    let octets: Vec<u8> = if let Some(hex) = value.strip_prefix("Hex-STRING: ") {
        hex.split_whitespace().map(|octet| u8::from_str_radix(octet, 16).unwrap()).collect()
    } else {
        let text = value.strip_prefix("STRING: \"").and_then(|text| text.strip_suffix('"'));
        let text = text.unwrap_or_else(|| panic!("no list: {value}"));
        text.replace("\\\"", "\"").replace("\\\\", "\\").into_bytes()
    };
    (0..)
        .zip(octets)
        .flat_map(|(at, octet)| {
            (0..8).filter(move |bit| octet & (0x80 >> bit) != 0).map(move |bit| at * 8 + bit + 1)
        })
        .collect()
}

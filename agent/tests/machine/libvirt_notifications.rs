//! Notifications about real libvirt domains, in every way that net-snmp can send them: each change once, in order, with
//! the state before it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Read as _;

use crate::lab::{
    libvirt::{domain, uuid},
    stage::Stage,
    traps::{notifications, wait_for_those},
};
use kvmeter::inventory::{
    OperState::{
        self, Crashed, Migrating, Paused, Resuming, Running, Shutdown, Shuttingdown, Suspended,
        Suspending,
    },
    Persistence,
};
use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{Libvirtd, PATIENCE, Snmptrapd, Way, wait_until};

const PER_VM: &str = "[notifications]\nper_vm = true\n";

/// Configuration of two agents on one host, which must each see the domains of its own libvirt only.
const ONLY_DOMAINS: &str = "procfs = false\n[notifications]\nper_vm = true\n";

/// A host with one libvirt, its agent and manager.
struct Host {
    stage: Stage,
    snmptrapd: Snmptrapd,
    libvirtd: Libvirtd,
    ways: Vec<Way>,
    /// What a notification about this test's domains contains: other tests have VMs, too.
    named: String,
    _dir: tempfile::TempDir,
}

impl Host {
    fn new(host: &str, ways: &[Way], config: &str, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let libvirtd = Libvirtd::start_as(dir.path(), host).unwrap();
        let snmptrapd = Snmptrapd::start(dir.path()).unwrap();
        let stage = Stage::configured(&libvirtd.uri_read_only(), &snmptrapd.sinks(ways), config);
        wait_until(PATIENCE, "libvirt is live", || {
            (stage.status()["sources"][1]["state"] == "live").then_some(())
        })
        .unwrap();
        let named = format!("STRING: \"{name}");
        Self { stage, snmptrapd, libvirtd, ways: ways.to_vec(), named, _dir: dir }
    }

    fn virsh(&self, command: &str, number: u32) {
        let mut arguments: Vec<&str> = command.split(' ').collect();
        let uuid = uuid(number);
        arguments.insert(1, &uuid);
        self.libvirtd.virsh(&arguments).unwrap_or_else(|error| {
            let received = self.received();
            panic!("{error}\n{}\n{}", received.join("\n"), self.stage.agent.log());
        });
    }

    /// Makes the guest write to ports, repeatedly until the domain is in this state: its firmware may have to run first.
    fn guest_writes(&self, number: u32, ports: &[&str], state: &str) {
        let uuid = uuid(number);
        wait_until(PATIENCE, "what the guest writes has its effect", || {
            for port in ports {
                let command = format!("o {port}");
                // Fails if the previous write has ended the domain.
                let _ = self.libvirtd.virsh(&["qemu-monitor-command", &uuid, "--hmp", &command]);
            }
            self.is_in(number, state).then_some(())
        })
        .unwrap();
    }

    fn is_in(&self, number: u32, state: &str) -> bool {
        let said = self.libvirtd.virsh(&["domstate", &uuid(number), "--reason"]).unwrap();
        said.starts_with(state)
    }

    /// Kills a domain's QEMU. Waits until libvirt would start the domain again: its event may come before that.
    fn kill(&self, name: &str, number: u32) {
        let pid = self.libvirtd.pid(name).unwrap().cast_signed();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
        wait_until(PATIENCE, "it is off", || self.is_in(number, "shut off").then_some(())).unwrap();
    }

    /// Asserts that each way delivered exactly these notifications, in this order.
    fn expect(&self, expected: &[String]) {
        for &way in &self.ways {
            let received = self.wait_for(way, expected.len());
            assert_eq!(notifications(&received), expected, "{way:?}");
        }
    }

    /// Waits for a notification of this kind after the first `count` ones, on the first way.
    fn last_after(&self, count: usize, kind: &str) -> String {
        wait_until(PATIENCE, "the change is reported", || {
            self.received().into_iter().skip(count).find(|line| line.starts_with(kind))
        })
        .unwrap_or_else(|error| panic!("{error}\n{}", self.stage.agent.log()))
    }

    fn wait_for_states(&self, states: usize) {
        for &way in &self.ways {
            self.wait_for(way, states);
        }
    }

    /// The notifications about this test's domains on the first way.
    fn received(&self) -> Vec<String> {
        let mut received = self.snmptrapd.received(self.ways[0]);
        received.retain(|line| line.contains(&self.named));
        notifications(&received)
    }

    fn wait_for(&self, way: Way, count: usize) -> Vec<String> {
        wait_for_those(&self.snmptrapd, way, &self.named, count, &self.stage)
    }
}

/// The expected notification of one VM, with its number and the state before.
fn one(number: u32, name: &str, index: u32, uuid_of: u32, before: OperState) -> String {
    let digits = uuid(uuid_of).replace('-', "").to_uppercase();
    let octets: Vec<&str> = (0..16).map(|at| &digits[2 * at..2 * at + 2]).collect();
    format!(
        "{number}: 1.4.1.2.{index} = STRING: \"{name}\", 1.4.1.3.{index} = Hex-STRING: {}, \
         1.4.1.6.{index} = INTEGER: {}",
        octets.join(" "),
        before as i32
    )
}

#[test]
fn the_life_of_a_domain_is_told_in_every_way_once_and_in_order() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu", "libvirt");
    let host = Host::new("here", &Way::ALL, PER_VM, "life");
    let more = "<vcpu>1</vcpu><features><acpi/></features><on_crash>preserve</on_crash>";
    host.libvirtd.define(&domain("life", 1, more, "<panic model='isa'/>")).unwrap();
    let index = host.stage.index_by_uuid(&uuid(1));
    let mut expected = Vec::new();
    // Each change waits for the notification of the previous one, so that no change is merged.
    let mut then = |steps: &[(u32, OperState)], act: &dyn Fn()| {
        act();
        let mut steps = steps.to_vec();
        if let [(2, before), (3, Shuttingdown)] = steps[..] {
            // For a destroyed QEMU, libvirt does not always send the shutdown event.
            let last = host.last_after(expected.len(), "3: ");
            if last == one(3, "life", index, 1, before) {
                steps = vec![(3, before)];
            }
        }
        expected
            .extend(steps.iter().map(|(number, before)| one(*number, "life", index, 1, *before)));
        host.wait_for_states(expected.len());
    };
    then(&[(1, Shutdown)], &|| host.virsh("start", 1));
    then(&[(4, Running)], &|| host.virsh("suspend", 1));
    then(&[(1, Paused)], &|| host.virsh("resume", 1));
    then(&[(5, Running), (6, Suspending)], &|| host.virsh("managedsave", 1));
    then(&[(7, Suspended), (1, Resuming)], &|| host.virsh("start", 1));
    // The guest powers off through a port of the chip set (PM1a_CNT, SLP_EN). QEMU 7.2 takes only the word, 11.1 only its byte.
    then(&[(2, Running), (3, Shuttingdown)], &|| {
        host.guest_writes(1, &["/w 0x604 0x2000", "/b 0x605 0x20"], "shut off")
    });
    then(&[(1, Shutdown)], &|| host.virsh("start", 1));
    // QEMU quits on command, and libvirt sends an event.
    then(&[(2, Running), (3, Shuttingdown)], &|| host.virsh("destroy", 1));
    then(&[(1, Shutdown)], &|| host.virsh("start", 1));
    // The guest panics through the port of the panic device, and is kept.
    then(&[(9, Running)], &|| host.guest_writes(1, &["/b 0x505 1"], "crashed"));
    then(&[(2, Crashed), (3, Shuttingdown)], &|| host.virsh("destroy", 1));
    then(&[(1, Shutdown)], &|| host.virsh("start", 1));
    then(&[(9, Running)], &|| host.kill("life", 1));
    then(&[(1, Crashed)], &|| host.virsh("start", 1));
    // Shut down and deleted at once: a transient domain is deleted when it ends.
    then(&[], &|| host.virsh("undefine", 1));
    then(&[(2, Running), (3, Shuttingdown)], &|| host.virsh("destroy", 1));
    expected.push(format!(
        "{}, 1.4.1.8.{index} = INTEGER: {}",
        one(10, "life", index, 1, Shutdown),
        Persistence::Transient as i32
    ));
    host.expect(&expected);
}

#[test]
fn a_live_migration_is_told_on_both_sides() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu", "libvirt");
    let from = Host::new("here", &[Way::Trap], ONLY_DOMAINS, "moves");
    let to = Host::new("there", &[Way::Trap], ONLY_DOMAINS, "moves");
    from.libvirtd.define(&domain("moves", 2, "<vcpu>1</vcpu>", "")).unwrap();
    from.virsh("start", 2);
    from.wait_for_states(1);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (uri, of_qemu) = (to.libvirtd.uri_read_write(), format!("tcp:127.0.0.1:{port}"));
    from.libvirtd.virsh(&["migrate", "--live", "--unsafe", &uuid(2), &uri, &of_qemu]).unwrap();
    from.expect(&[
        one(1, "moves", 1, 2, Shutdown),
        one(8, "moves", 1, 2, Running),
        one(3, "moves", 1, 2, Migrating),
    ]);
    to.expect(&[one(8, "moves", 1, 2, Shutdown), one(1, "moves", 1, 2, Migrating)]);
}

#[test]
fn a_storm_of_real_domains_is_told_once_each() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu", "libvirt");
    // One QEMU process each; a machine with more memory and time can run more.
    let domains: u32 = std::env::var("KVMETER_STORM").map_or(12, |number| number.parse().unwrap());
    let host = Host::new("here", &[Way::Trap], PER_VM, "storm");
    for number in 1..=domains {
        let name = format!("storm{number}");
        host.libvirtd.define(&domain(&name, number, "<vcpu>1</vcpu>", "")).unwrap();
    }
    std::thread::scope(|scope| {
        for number in 1..=domains {
            let host = &host;
            scope.spawn(move || {
                for command in ["start", "suspend", "resume", "destroy"] {
                    host.virsh(command, number);
                }
            });
        }
    });
    let all = wait_until(PATIENCE, "all have ended", || {
        let all = host.received();
        let ended = all.iter().filter(|line| line.starts_with("3: ")).count();
        (ended >= domains as usize).then_some(all)
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", host.stage.agent.log()));
    let life = [(1, Shutdown), (4, Running), (1, Paused), (2, Running), (3, Shuttingdown)];
    // For a destroyed QEMU, libvirt does not always send the shutdown event.
    let unheard = [(1, Shutdown), (4, Running), (1, Paused), (3, Running)];
    for number in 1..=domains {
        let name = format!("storm{number}");
        let its: Vec<&String> =
            all.iter().filter(|line| line.contains(&format!("\"{name}\""))).collect();
        let index = its[0].split(' ').nth(1).unwrap().rsplit('.').next().unwrap();
        let index = index.parse().unwrap();
        let life = if its.len() == unheard.len() { &unheard[..] } else { &life };
        let expected: Vec<_> =
            life.iter().map(|(kind, before)| one(*kind, &name, index, number, *before)).collect();
        assert_eq!(its, expected.iter().collect::<Vec<_>>());
    }
}

#[test]
fn a_migration_that_is_given_up_is_told_from_its_beginning_to_its_end() {
    require!("ebpf", "kvm", "snmpd", "snmptrapd", "qemu", "libvirt");
    let from = Host::new("here", &[Way::Trap], ONLY_DOMAINS, "stays");
    let dir = tempfile::tempdir().unwrap();
    let to = Libvirtd::start_as(dir.path(), "there").unwrap();
    // Memory that migrates slowly: 32 MiB of random bytes at 1 MiB per second.
    let image = dir.path().join("random");
    let mut random = std::fs::File::open("/dev/urandom").unwrap().take(32 << 20);
    std::io::copy(&mut random, &mut std::fs::File::create(&image).unwrap()).unwrap();
    let loader = format!(
        "<qemu:commandline><qemu:arg value='-device'/>\
         <qemu:arg value='loader,file={},addr=0x1000000,force-raw=on'/></qemu:commandline></domain>",
        image.display()
    );
    let xml = domain("stays", 3, "<vcpu>1</vcpu>", "")
        .replace("<domain ", "<domain xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0' ")
        .replace("</domain>", &loader);
    from.libvirtd.define(&xml).unwrap();
    from.virsh("start", 3);
    from.wait_for_states(1);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    std::thread::scope(|scope| {
        let migrated = scope.spawn(|| {
            let (uri, of_qemu) = (to.uri_read_write(), format!("tcp:127.0.0.1:{port}"));
            let slowly = ["migrate", "--live", "--unsafe", "--bandwidth", "1"];
            from.libvirtd.virsh(&[&slowly[..], &[&uuid(3), &uri, &of_qemu]].concat())
        });
        from.wait_for_states(2);
        from.virsh("domjobabort", 3);
        assert!(migrated.join().unwrap().is_err(), "it is given up");
    });
    from.expect(&[
        one(1, "stays", 1, 3, Shutdown),
        one(8, "stays", 1, 3, Running),
        one(1, "stays", 1, 3, Migrating),
    ]);
}

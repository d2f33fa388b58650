//! Which process is a domain's, and whose row it is: thieves, clones, liars and rogues beside the VMs that they imitate.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use kvmeter::{
    account::Account,
    inventory::{
        ChangeEvent::{Deleted, State},
        Domain, DomainFact, DomainProcess, Fact, Machine,
        OperState::{Running, Shutdown},
        Output, SavedIndexes, VmProcess, VmUuid,
    },
};

use super::{Host, QEMU, UUID, domain, listed, process};

/// The domain as libvirt describes it with this process.
fn domain_of(process: DomainProcess) -> Domain {
    let state = if process == DomainProcess::None { Shutdown } else { Running };
    Domain { process, ..domain(state) }
}

fn found(host: &mut Host, domain: Domain) {
    let domains = BTreeMap::from([(domain.uuid, Some(domain))]);
    host.libvirt_of(QEMU, DomainFact::Changed { domains, events: Vec::new() });
}

fn started(host: &mut Host, domain: Domain) {
    let events = vec![(domain.uuid, State(domain.state.oper_state))];
    let domains = BTreeMap::from([(domain.uuid, Some(domain))]);
    host.libvirt_of(QEMU, DomainFact::Changed { domains, events });
}

fn put(host: &mut Host, process: VmProcess) {
    host.fact(Fact::Process(Arc::new(process)));
}

/// vmIndex, process id and whether there is a vmUUID.
fn rows(host: &Host) -> Vec<(u32, Option<u32>, bool)> {
    host.view.vms.iter().map(|vm| (vm.index.0, vm.pid, vm.uuid.is_some())).collect()
}

#[test]
fn a_clone_has_a_row_of_its_own_that_outlives_the_first() {
    let mut host = Host::with(&[], SavedIndexes::default());
    host.start(7);
    host.start(3);
    assert_eq!(rows(&host), [(1, Some(7), true), (2, Some(3), false)]);
    host.changes.clear();
    host.end(7);
    assert_eq!(rows(&host), [(2, Some(3), false)]);
    assert_eq!(host.changes, [(1, Running, State(Shutdown)), (1, Shutdown, Deleted)]);
    // The first is started again, and the clone ends.
    host.start(9);
    assert_eq!(rows(&host), [(1, Some(9), true), (2, Some(3), false)]);
    host.changes.clear();
    host.end(3);
    assert_eq!(rows(&host), [(1, Some(9), true)]);
    assert_eq!(host.changes, [(2, Running, State(Shutdown)), (2, Shutdown, Deleted)]);
}

#[test]
fn a_clone_keeps_its_row_over_a_restart_of_the_agent() {
    let mut host = Host::with(&[], SavedIndexes::default());
    host.start(7);
    host.start(3);
    host.end(7);
    host.start(9);
    let both = [(1, Some(9), true), (2, Some(3), false)];
    assert_eq!(rows(&host), both);
    for order in [[3, 9], [9, 3]] {
        // The clone is the older one.
        let mut again = Host::unlisted(&[], host.core.saved_indexes());
        order.into_iter().for_each(|pid| again.start(pid));
        again.fact(Fact::ProcessesListed);
        assert_eq!(rows(&again), both);
        // The next process with its id is another one.
        again.end(3);
        again.end(9);
        again.start(3);
        assert_eq!(rows(&again), [(1, Some(3), true)]);
    }
}

#[test]
fn a_vm_that_is_scanned_late_after_a_restart_of_the_agent_has_its_index_still() {
    let unnamed = |pid| VmProcess { uuid: None, ..process(pid) };
    let mut host = Host::with(&[], SavedIndexes::default());
    put(&mut host, unnamed(3));
    put(&mut host, unnamed(4));
    let mut again = Host::with(&[], host.core.saved_indexes());
    again.now.instant += Duration::from_secs(600);
    put(&mut again, unnamed(5));
    assert_eq!(rows(&again), [(3, Some(5), false)], "others may be waiting for a scan");
    put(&mut again, VmProcess { was_there: true, ..unnamed(4) });
    assert_eq!(rows(&again), [(2, Some(4), false), (3, Some(5), false)]);
    again.fact(Fact::ProcessesScanned);
    put(&mut again, unnamed(6));
    assert_eq!(rows(&again)[2], (4, Some(6), false), "an index rests");
    again.now.instant += Duration::from_secs(61);
    put(&mut again, unnamed(7));
    assert_eq!(rows(&again)[0], (1, Some(7), false));
}

#[test]
fn the_index_of_a_row_that_managers_know_rests_when_its_process_becomes_a_domains() {
    let mut host = Host::new();
    let unnamed = |pid| VmProcess { uuid: None, name: format!("qemu-{pid}"), ..process(pid) };
    put(&mut host, unnamed(4));
    host.settle();
    assert_eq!(rows(&host), [(1, Some(4), false)]);
    host.changes.clear();
    started(&mut host, domain_of(DomainProcess::Pid(4)));
    host.settle();
    assert_eq!(rows(&host), [(2, Some(4), true)]);
    assert!(host.changes.contains(&(1, Shutdown, Deleted)), "{:?}", host.changes);
    put(&mut host, unnamed(5));
    host.settle();
    assert_eq!(rows(&host), [(2, Some(4), true), (3, Some(5), false)], "1 is not given again yet");
}

#[test]
fn the_oldest_of_those_that_were_there_before_the_agent_has_the_uuid() {
    for order in [[3, 7], [7, 3]] {
        let mut host = Host::unlisted(&[], SavedIndexes::default());
        for pid in order {
            let started_ns = u64::from(100 - pid);
            put(&mut host, VmProcess { started_ns, ..process(pid) });
        }
        host.fact(Fact::ProcessesListed);
        assert_eq!(rows(&host), [(1, Some(7), true), (2, Some(3), false)]);
        assert_eq!(host.told(), []);
    }
}

#[test]
fn a_thief_of_a_domains_uuid_and_name_is_shown_beside_the_domain() {
    for thief in [1, 9] {
        for has_kvm in [false, true] {
            let mut host = Host::new();
            host.start(5);
            started(&mut host, domain_of(DomainProcess::Pid(5)));
            host.settle();
            put(&mut host, VmProcess { has_kvm, ..process(thief) });
            let both = [(1, Some(5), true), (2, Some(thief), false)];
            assert_eq!(rows(&host), both);
            found(&mut host, domain_of(DomainProcess::Pid(5)));
            host.settle();
            assert_eq!(rows(&host), both);
            host.changes.clear();
            host.end(thief);
            assert_eq!(host.changes, [(2, Running, State(Shutdown)), (2, Shutdown, Deleted)]);
            assert_eq!(rows(&host), [(1, Some(5), true)]);
        }
    }
}

#[test]
fn without_libvirts_files_the_process_that_was_first_stays_the_domains() {
    for thief in [1, 9] {
        let mut host = Host::new();
        put(&mut host, VmProcess { has_kvm: false, ..process(5) });
        started(&mut host, domain(Running));
        host.settle();
        put(&mut host, process(thief));
        found(&mut host, domain(Running));
        host.settle();
        assert_eq!(rows(&host), [(1, Some(5), true), (2, Some(thief), false)]);
        // Nor does it inherit the row.
        host.end(5);
        started(&mut host, domain(Shutdown));
        host.settle();
        assert_eq!(rows(&host), [(1, None, true), (2, Some(thief), false)]);
        put(&mut host, process(6));
        started(&mut host, domain(Running));
        assert_eq!(rows(&host), [(1, Some(6), true), (2, Some(thief), false)]);
    }
}

#[test]
fn a_rogue_with_the_name_of_a_domain_that_is_off_gets_a_row_of_its_own() {
    for off in [domain(Shutdown), domain_of(DomainProcess::None)] {
        let mut host = Host::new();
        found(&mut host, off.clone());
        host.told();
        host.start(4);
        assert_eq!(rows(&host), [(1, None, true)], "libvirt may be about to report it");
        let due = host.core.poll_timeout().unwrap();
        assert!(due <= host.now.instant + Duration::from_millis(500));
        host.now.instant = due;
        host.core.handle_timeout(host.now);
        host.drain();
        let asked = host.others.iter().filter(|it| matches!(it, Output::Describe(_, UUID)));
        assert_eq!(asked.count(), 1, "libvirt is asked");
        found(&mut host, off);
        let end = host.now.instant + Duration::from_millis(500);
        host.settle();
        assert!(host.now.instant <= end);
        assert_eq!(rows(&host), [(1, None, true), (2, Some(4), false)]);
        assert_eq!(host.told(), [(Shutdown, State(Running))]);
        // The domain is started while the rogue runs.
        host.start(6);
        assert_eq!(rows(&host), [(1, None, true), (2, Some(4), false)]);
        started(&mut host, domain_of(DomainProcess::Pid(6)));
        host.settle();
        assert_eq!(rows(&host), [(1, Some(6), true), (2, Some(4), false)]);
        host.changes.clear();
        host.end(4);
        assert_eq!(host.changes, [(2, Running, State(Shutdown)), (2, Shutdown, Deleted)]);
    }
}

#[test]
fn a_start_that_libvirt_reports_late_is_that_of_the_domain() {
    let mut host = Host::new();
    found(&mut host, domain_of(DomainProcess::None));
    host.told();
    host.start(4);
    let uuids = [UUID].into();
    host.libvirt_of(QEMU, DomainFact::EventsUnderWay(uuids, 1));
    host.now.instant += Duration::from_secs(5);
    host.core.handle_timeout(host.now);
    host.drain();
    assert_eq!(rows(&host), [(1, None, true)]);
    started(&mut host, domain_of(DomainProcess::Pid(4)));
    host.settle();
    assert_eq!(rows(&host), [(1, Some(4), true)]);
    assert_eq!(host.told(), [(Shutdown, State(Running))]);
}

#[test]
fn who_was_there_before_a_domain_with_its_uuid_keeps_the_row_and_the_domain_gets_the_uuid() {
    let mut host = Host::new();
    host.start(4);
    host.settle();
    assert_eq!(rows(&host), [(1, Some(4), true)]);
    host.told();
    host.start(6);
    started(&mut host, domain_of(DomainProcess::Pid(6)));
    host.settle();
    let shown: Vec<_> = rows(&host).into_iter().map(|(_, pid, has)| (pid, has)).collect();
    assert_eq!(rows(&host)[0], (1, Some(4), false));
    assert!(shown.contains(&(Some(6), true)) && shown.len() == 2, "{shown:?}");
    // A domain that came and went before it was described is not the process that has the row.
    host.told();
    let other = VmUuid::of_bytes([3; 16]);
    put(&mut host, VmProcess { uuid: Some(other), ..process(8) });
    host.settle();
    host.told();
    let events = vec![(other, State(Running)), (other, State(Shutdown))];
    let domains = BTreeMap::from([(other, None)]);
    host.libvirt_of(QEMU, DomainFact::Changed { domains, events });
    host.settle();
    assert_eq!(host.told(), []);
}

#[test]
fn an_agent_that_starts_finds_the_row_of_a_domain_again_though_a_thief_is_older() {
    let mut host = Host::new();
    host.start(5);
    started(&mut host, domain_of(DomainProcess::Pid(5)));
    let saved = host.core.saved_indexes();
    let mut again = Host::unlisted(&[("qemu:///system", true)], saved);
    again.start(2);
    again.start(5);
    again.fact(Fact::ProcessesListed);
    again.libvirt_of(QEMU, listed(vec![domain_of(DomainProcess::Pid(5))]));
    again.settle();
    let shown: Vec<_> = rows(&again).into_iter().map(|(_, pid, has)| (pid, has)).collect();
    assert_eq!((rows(&again)[0].0, &shown[..]), (1, &[(Some(5), true), (Some(2), false)][..]));
    assert_eq!(again.told(), [], "nothing has changed");
}

#[test]
fn a_process_that_takes_another_uuid_stays_its_domains() {
    let mut host = Host::new();
    host.start(5);
    started(&mut host, domain_of(DomainProcess::Pid(5)));
    host.settle();
    host.told();
    let other = Some(VmUuid::of_bytes([1; 16]));
    put(&mut host, VmProcess { uuid: other, name: "x".to_owned(), ..process(5) });
    host.settle();
    assert_eq!(rows(&host), [(1, Some(5), true)]);
    assert_eq!(host.told(), []);
    host.end(5);
    assert_eq!(rows(&host), [(1, None, true)]);
}

#[test]
fn a_process_without_name_and_uuid_is_that_of_the_domain_that_libvirt_says() {
    let machine = Machine { driver: "ch".to_owned(), id: 3 };
    for has_file in [false, true] {
        let mut host = Host::with(&[("ch:///system", true)], SavedIndexes::default());
        host.libvirt_of(QEMU, listed(Vec::new()));
        let own = VmProcess { uuid: None, name: "cloud-hyperviso-5".to_owned(), ..process(5) };
        put(&mut host, own.clone());
        assert!(host.view.vms.is_empty(), "libvirt may be about to report it");
        let of_domain = if has_file {
            domain_of(DomainProcess::Pid(5))
        } else {
            Domain { machine: Some(machine.clone()), ..domain(Running) }
        };
        started(&mut host, of_domain);
        if !has_file {
            put(&mut host, VmProcess { machine: Some(machine.clone()), ..own });
        }
        host.settle();
        assert_eq!(rows(&host), [(1, Some(5), true)]);
        assert_eq!(host.told(), [(Shutdown, State(Running))]);
        // Another one is no domain's.
        let name = "cloud-hyperviso-6".to_owned();
        put(&mut host, VmProcess { uuid: None, name, ..process(6) });
        host.settle();
        assert_eq!(rows(&host), [(1, Some(5), true), (2, Some(6), false)]);
    }
}

#[test]
fn the_control_group_of_a_domain_is_worth_more_than_a_command_line() {
    let machine = |id| Some(Machine { driver: "qemu".to_owned(), id });
    let mut host = Host::new();
    put(&mut host, VmProcess { machine: machine(1), ..process(5) });
    started(&mut host, Domain { machine: machine(1), ..domain(Running) });
    host.settle();
    host.start(2);
    host.settle();
    assert_eq!(rows(&host), [(1, Some(5), true), (2, Some(2), false)]);
    host.end(5);
    host.settle();
    assert_eq!(rows(&host), [(1, None, true), (2, Some(2), false)]);
}

#[test]
fn an_id_that_libvirt_told_holds_for_one_process_only() {
    let mut host = Host::new();
    host.start(5);
    started(&mut host, domain_of(DomainProcess::Pid(5)));
    host.settle();
    // The process ends, and an impostor gets its id before libvirt says anything.
    put(&mut host, VmProcess { start_ticks: 99, started_ns: 99, ..process(5) });
    host.settle();
    assert_eq!(rows(&host), [(1, None, true), (2, Some(5), false)]);
}

#[test]
fn what_changes_of_a_users_vm_has_the_user_and_a_domains_has_none() {
    let mut host = Host::new();
    let of_user = VmProcess {
        account: Some(Account::User(9)),
        uuid: None,
        name: "x".to_owned(),
        ..process(5)
    };
    put(&mut host, of_user);
    host.settle();
    host.end(5);
    assert_eq!(host.users, [Some(Account::User(9)); 3], "{:?}", host.changes);
    host.users.clear();

    // QEMU has a user of its own below libvirt: procfs is told.
    put(&mut host, VmProcess { account: Some(Account::User(64_055)), ..process(6) });
    started(&mut host, domain_of(DomainProcess::Pid(6)));
    host.settle();
    assert!(host.others.iter().any(|output| matches!(output, Output::Entrust(6, 6))));
    assert!(!host.users.is_empty() && host.users.iter().all(Option::is_none), "{:?}", host.users);
    host.others.clear();
    put(&mut host, process(6));
    assert!(!host.others.iter().any(|output| matches!(output, Output::Entrust(..))));
}

#[test]
fn what_a_users_own_libvirt_reports_is_the_users() {
    let of_session = || Domain { user: Some(9), ..domain_of(DomainProcess::Pid(6)) };
    let mut host = Host::new();
    put(&mut host, VmProcess { account: Some(Account::User(9)), ..process(6) });
    started(&mut host, of_session());
    host.settle();
    found(&mut host, Domain { user: Some(9), ..domain_of(DomainProcess::None) });
    host.settle();
    host.end(6);
    host.settle();
    assert!(!host.others.iter().any(|output| matches!(output, Output::Entrust(..))));
    assert!(host.users.len() > 1, "{:?}", host.changes);
    assert!(
        host.users.iter().all(|user| *user == Some(Account::User(9))),
        "{:?} {:?}",
        host.users,
        host.changes
    );
}

//! VMs with one UUID: domains of two connections, and processes.

use std::{collections::BTreeMap, sync::Arc};

use kvmeter::inventory::{
    ChangeEvent::{Deleted, State},
    Domain, DomainFact, Fact,
    OperState::{self, Running, Shutdown},
    SavedIndexes, SourceId, VmProcess,
};

use super::{Host, QEMU, SECOND, UUID, domain, listed, process};

#[test]
fn two_connections_with_one_uuid_are_two_vms_whatever_comes_first_and_whoever_goes() {
    let connections = [("qemu:///system", true), ("test:///default", false)];
    let found = || listed(vec![domain(Running)]);
    let mut host = Host::with(&connections, SavedIndexes::default());
    host.start(1);
    host.libvirt_of(SECOND, found());
    host.libvirt_of(QEMU, found());
    let rows = [(1, "vm", true), (2, "vm", false)];
    assert_eq!(host.rows(), rows);
    // The driver that has processes has this one.
    let pids = |host: &Host| host.view.vms.iter().map(|vm| vm.pid).collect::<Vec<_>>();
    let has_process = pids(&host);
    assert_eq!(has_process.iter().flatten().count(), 1);
    // One goes and comes back, and each keeps its row.
    host.told();
    for source in [QEMU, SECOND] {
        host.libvirt_of(source, DomainFact::Lost);
        assert_eq!(host.rows(), rows);
        assert_eq!(host.states(), [Running; 2], "what it reported last stays");
        host.libvirt_of(source, found());
        host.settle();
        assert_eq!(host.told(), []);
        assert_eq!(host.rows(), rows);
    }
    assert_eq!(pids(&host), has_process);
    // The other agent that starts now hears them in another order.
    let saved = host.core.saved_indexes();
    let mut again = Host::with(&connections, saved);
    again.libvirt_of(QEMU, found());
    again.libvirt_of(SECOND, found());
    let source = |host: &Host| host.view.vms.iter().map(|vm| vm.source).collect::<Vec<_>>();
    assert_eq!(again.rows(), rows);
    assert_eq!(source(&again), source(&host));
    // A change of one is none of the other.
    let paused = BTreeMap::from([(UUID, Some(domain(OperState::Paused)))]);
    let events = vec![(UUID, State(OperState::Paused))];
    host.libvirt_of(QEMU, DomainFact::Changed { domains: paused, events });
    assert_eq!(host.told(), [(Running, State(OperState::Paused))]);
}

#[test]
fn a_live_process_keeps_its_row_when_another_with_its_uuid_ends() {
    let mut host = Host::with(&[], SavedIndexes::default());
    host.start(1);
    host.start(2);
    host.told();
    host.end(1);
    assert_eq!(host.told(), [(Running, State(Shutdown)), (Shutdown, Deleted)]);
    assert_eq!(
        host.view.vms.iter().map(|vm| (vm.index.0, vm.pid)).collect::<Vec<_>>(),
        [(2, Some(2))]
    );
}

#[test]
fn a_domain_without_processes_hides_no_vm() {
    let connections = [("qemu:///system", true), ("test:///default", false)];
    let mut host = Host::with(&connections, SavedIndexes::default());
    host.start(1);
    host.libvirt_of(SECOND, listed(vec![domain(Running)]));
    assert_eq!(host.view.vms.len(), 2);
    assert_eq!(host.view.vms.iter().filter(|vm| vm.pid == Some(1)).count(), 1);
}

/// Two QEMU connections, each with a domain of the same UUID, and a process of each name.
fn namesakes(host: &mut Host, domains: &[(SourceId, &str)], processes: &[(u32, &str)]) {
    for &(pid, name) in processes {
        host.fact(Fact::Process(Arc::new(VmProcess { name: name.to_owned(), ..process(pid) })));
    }
    for &(source, name) in domains {
        let found = Domain { name: name.to_owned(), ..domain(Running) };
        host.libvirt_of(source, listed(vec![found]));
    }
}

const TWO_QEMU: [(&str, bool); 2] = [("qemu:///system", true), ("qemu:///embed", true)];

/// vmIndex, vmName and process id.
fn pids(host: &Host) -> Vec<(u32, &str, Option<u32>)> {
    host.view.vms.iter().map(|vm| (vm.index.0, vm.name.as_str(), vm.pid)).collect()
}

fn pids_by_name(host: &Host) -> Vec<(&str, Option<u32>)> {
    pids(host).into_iter().map(|(_, name, pid)| (name, pid)).collect()
}

#[test]
fn the_process_with_the_name_of_a_domain_is_that_domains() {
    let domains = [(QEMU, "a"), (SECOND, "b")];
    // The other domain's process is alone at first.
    let mut host = Host::with(&TWO_QEMU, SavedIndexes::default());
    namesakes(&mut host, &domains, &[(1, "b")]);
    assert_eq!(pids_by_name(&host), [("a", None), ("b", Some(1))]);
    namesakes(&mut host, &[], &[(2, "a")]);
    assert_eq!(pids_by_name(&host), [("a", Some(2)), ("b", Some(1))]);
    // Without KVM, and beside one that has it.
    let mut host = Host::with(&TWO_QEMU, SavedIndexes::default());
    let plain = VmProcess { name: "a".to_owned(), has_kvm: false, ..process(1) };
    host.fact(Fact::Process(Arc::new(plain)));
    namesakes(&mut host, &domains, &[(2, "b")]);
    assert_eq!(pids_by_name(&host), [("a", Some(1)), ("b", Some(2))]);
    // A name that is no domain's.
    let mut host = Host::with(&TWO_QEMU, SavedIndexes::default());
    namesakes(&mut host, &domains, &[(1, "b"), (2, "c")]);
    let mut rows = pids_by_name(&host);
    rows.sort_unstable();
    assert_eq!(rows, [("a", None), ("b", Some(1)), ("c", Some(2))]);
}

#[test]
fn an_agent_that_starts_again_keeps_the_rows_of_a_connection_that_is_away() {
    let mut host = Host::with(&TWO_QEMU, SavedIndexes::default());
    namesakes(&mut host, &[(QEMU, "a"), (SECOND, "b")], &[(1, "b"), (2, "a")]);
    let rows = [(1, "a", Some(2)), (2, "b", Some(1))];
    assert_eq!(pids(&host), rows);
    let saved = host.core.saved_indexes();
    for order in [[(QEMU, "a"), (SECOND, "b")], [(SECOND, "b"), (QEMU, "a")]] {
        for processes in [[(1, "b"), (2, "a")], [(2, "a"), (1, "b")]] {
            let mut again = Host::with(&TWO_QEMU, saved.clone());
            namesakes(&mut again, &[], &processes);
            assert_eq!(again.view.vms.iter().map(|vm| vm.index.0).collect::<Vec<_>>(), [1, 2]);
            for (at, listed) in order.iter().enumerate() {
                namesakes(&mut again, &[*listed], &[]);
                assert_eq!(pids(&again), rows, "{at} of {order:?} after {processes:?}");
            }
            assert_eq!(again.core.saved_indexes(), saved);
        }
    }
}

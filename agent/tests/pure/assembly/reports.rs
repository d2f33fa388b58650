//! What libvirt reports in parts: a state before its description, and domains that it cannot describe.

use super::*;

#[test]
fn a_state_that_comes_before_its_description_is_announced_once_and_disks_are_not_asked_for_again() {
    let mut host = Host::new();
    host.libvirt(&[Running], Some(Running));
    host.told();
    host.queries.clear();
    let paused = FoundState { oper_state: OperState::Paused, ..domain(Running).state };
    let under_way = DomainFact::EventsUnderWay(BTreeSet::from([UUID]), 1);
    host.libvirt_of(QEMU, under_way);
    host.libvirt_of(QEMU, DomainFact::State(UUID, paused, vec![State(OperState::Paused)]));
    assert_eq!(host.states(), [OperState::Paused]);
    assert_eq!(host.told(), [(Running, State(OperState::Paused))]);
    assert!(host.queries.is_empty());
    host.libvirt(&[], Some(OperState::Paused));
    host.settle();
    assert_eq!(host.told(), []);
    // The domain goes on before it is described.
    host.libvirt_of(QEMU, DomainFact::State(UUID, paused, vec![State(OperState::Paused)]));
    host.libvirt(&[], Some(Running));
    assert_eq!(host.told(), []);
    host.libvirt(&[Running], Some(Running));
    host.settle();
    assert_eq!(host.told(), [(OperState::Paused, State(Running))]);
    // A domain that was deleted meanwhile, or was never known.
    host.libvirt(&[Shutdown], None);
    host.told();
    host.libvirt_of(QEMU, DomainFact::State(UUID, paused, vec![State(OperState::Paused)]));
    host.settle();
    assert_eq!((host.states(), host.told()), (vec![], vec![]));
}

#[test]
fn a_domain_that_libvirt_cannot_describe_stays_as_it_was_known() {
    let mut host = Host::new();
    host.libvirt(&[Running], Some(Running));
    host.told();
    let rows = |host: &Host| host.view.vms.iter().cloned().collect::<Vec<_>>();
    let before = rows(&host);
    host.libvirt_of(QEMU, DomainFact::Lost);
    host.libvirt_of(QEMU, DomainFact::Listed(Vec::new(), BTreeSet::from([UUID])));
    host.settle();
    assert_eq!(rows(&host), before);
    host.told();
    // One that was not listed is gone.
    host.libvirt_of(QEMU, listed(Vec::new()));
    host.settle();
    assert_eq!(
        (host.states(), host.told()),
        (vec![], vec![(Running, State(Shutdown)), (Shutdown, Deleted)])
    );
}

#[test]
fn the_images_of_a_process_belong_to_it_once_libvirt_has_had_its_say() {
    let mut host = Host::new();
    let waits = |host: &mut Host| {
        let plans = host.others.drain(..).filter_map(|output| match output {
            Output::Count(plan) => Some(plan.may_be_of_domain),
            _ => None,
        });
        plans.reduce(|_, last| last)
    };
    host.start(7);
    assert_eq!(waits(&mut host), Some(true), "libvirt may be about to report its domain");
    host.settle();
    assert_eq!(waits(&mut host), Some(false), "libvirt has not");
    // A domain that libvirt does report gives its disks.
    host.start(8);
    host.end(7);
    host.libvirt(&[Running], Some(Running));
    assert_ne!(waits(&mut host), Some(true));
}

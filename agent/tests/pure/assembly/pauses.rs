//! VMs without libvirt that are paused, as the source of processes reports it.

use super::*;
use kvmeter::inventory::VcpuState::{self, Stopped};

const PAUSED: ChangeEvent = State(OperState::Paused);

fn states(host: &Host) -> Vec<(AdminState, OperState)> {
    host.view.vms.iter().map(|vm| (vm.admin_state, vm.oper_state)).collect()
}

fn without_libvirt() -> Host {
    Host::with(&[], SavedIndexes::default())
}

#[test]
fn a_vm_that_stops_is_paused_and_runs_again_once_each() {
    let mut host = without_libvirt();
    host.start(1);
    for (by_user, admin) in [(false, AdminState::Running), (true, AdminState::Paused)] {
        host.told();
        host.fact(Fact::Vcpus(1, VcpuState::Running));
        assert_eq!(host.told(), []);
        host.fact(Fact::Vcpus(1, Stopped { by_user }));
        assert_eq!(states(&host), [(admin, OperState::Paused)]);
        assert_eq!(host.told(), [(Running, PAUSED)]);
        // Something else about it changes meanwhile.
        host.fact(Fact::Process(Arc::new(VmProcess { cpus: 2, ..process(1) })));
        assert_eq!((states(&host), host.told()), (vec![(admin, OperState::Paused)], vec![]));
        host.fact(Fact::Vcpus(1, VcpuState::Running));
        assert_eq!(states(&host), [(AdminState::Running, Running)]);
        assert_eq!(host.told(), [(OperState::Paused, State(Running))]);
    }
    host.fact(Fact::Vcpus(1, Stopped { by_user: false }));
    host.told();
    host.end(1);
    assert_eq!(host.told(), [(OperState::Paused, State(Shutdown)), (Shutdown, Deleted)]);
    host.fact(Fact::Vcpus(1, VcpuState::Running));
    host.settle();
    assert_eq!((states(&host), host.told()), (vec![], vec![]));
}

#[test]
fn a_vm_that_is_started_to_be_paused_never_ran_before_its_user_says_so() {
    let mut host = without_libvirt();
    host.fact(Fact::Process(Arc::new(VmProcess { starts_stopped: true, ..process(1) })));
    host.fact(Fact::Vcpus(1, Stopped { by_user: true }));
    assert_eq!(states(&host), [(AdminState::Paused, OperState::Paused)]);
    assert_eq!(host.told(), [(Shutdown, PAUSED)]);
    host.fact(Fact::Vcpus(1, VcpuState::Running));
    assert_eq!(host.told(), [(OperState::Paused, State(Running))]);
}

#[test]
fn a_vm_that_was_paused_before_the_agent_has_not_changed() {
    let mut host = Host::unlisted(&[], SavedIndexes::default());
    host.start(1);
    host.start(2);
    host.fact(Fact::ProcessesListed);
    host.fact(Fact::Vcpus(1, Stopped { by_user: false }));
    host.fact(Fact::Vcpus(2, VcpuState::Running));
    assert_eq!((states(&host)[0].1, host.told()), (OperState::Paused, vec![]));
    host.fact(Fact::Vcpus(2, Stopped { by_user: false }));
    host.fact(Fact::Vcpus(1, VcpuState::Running));
    assert_eq!(host.told(), [(Running, PAUSED), (OperState::Paused, State(Running))]);
}

#[test]
fn a_vm_that_was_there_before_the_agent_is_no_news_however_late_it_is_scanned() {
    let mut host = without_libvirt();
    host.fact(Fact::Process(Arc::new(VmProcess { was_there: true, ..process(1) })));
    host.fact(Fact::Vcpus(1, Stopped { by_user: false }));
    assert_eq!((states(&host)[0].1, host.told()), (OperState::Paused, vec![]));
    host.fact(Fact::Process(Arc::new(VmProcess { was_there: true, cpus: 2, ..process(1) })));
    host.fact(Fact::Vcpus(1, VcpuState::Running));
    assert_eq!(host.told(), [(OperState::Paused, State(Running))]);
    host.start(2);
    assert!(!host.told().is_empty(), "it has been started");
}

#[test]
fn the_state_of_a_domain_is_that_of_libvirt() {
    let mut host = Host::new();
    host.start(1);
    host.libvirt(&[Running], Some(Running));
    host.settle();
    host.told();
    host.fact(Fact::Vcpus(1, Stopped { by_user: false }));
    host.settle();
    assert_eq!((states(&host), host.told()), (vec![(AdminState::Running, Running)], vec![]));
}

#[test]
fn a_process_that_may_be_a_domain_is_announced_as_it_is_found() {
    let mut host = Host::new();
    host.start(1);
    host.fact(Fact::Vcpus(1, Stopped { by_user: false }));
    assert_eq!(host.told(), [], "libvirt may be about to report it");
    host.settle();
    assert_eq!(host.told(), [(Shutdown, PAUSED)]);
}

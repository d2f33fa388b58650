//! The network interfaces of a VM.

use std::sync::Arc;

use kvmeter::inventory::{
    Devices, Domain, DomainFact, DomainNic, Fact, OperState::Running, SavedIndexes, VmProcess,
};

use super::{Host, QEMU, domain, process};

fn nic(octet: u8, device: &str) -> DomainNic {
    DomainNic {
        mac: vec![2, 0, 0, 0, 0, octet],
        device: Some(device.to_owned()),
        model: "virtio".to_owned(),
    }
}

/// vmNetworkIndex and the interface of the host.
fn rows(host: &Host) -> Vec<(u32, String)> {
    let vm = host.view.vms.iter().next().unwrap();
    vm.nics.iter().map(|nic| (nic.index, nic.device.clone().unwrap_or_default())).collect()
}

#[test]
fn interfaces_with_one_address_are_each_a_row_of_their_own() {
    // `<teaming>` of libvirt wants them, and guests that bond use them.
    let team = vec![nic(1, "t0"), nic(2, "t1"), nic(1, "t2"), nic(1, "t3")];
    let expected = [(1, "t0"), (2, "t1"), (3, "t2"), (4, "t3")];
    let expected = expected.map(|(index, device)| (index, device.to_owned()));

    let mut host = Host::with(&[], SavedIndexes::default());
    let devices = Devices { nics: team.clone(), ..Devices::default() };
    host.fact(Fact::Process(Arc::new(VmProcess { devices, ..process(1) })));
    assert_eq!(rows(&host), expected);

    let mut host = Host::new();
    let of = |nics| DomainFact::Listed(vec![Domain { nics, ..domain(Running) }]);
    host.libvirt_of(QEMU, of(team.clone()));
    assert_eq!(rows(&host), expected);
    // The first of them keeps its index when the last is unplugged, and the last when it is back.
    host.libvirt_of(QEMU, of(team[..3].to_vec()));
    assert_eq!(rows(&host), expected[..3]);
    host.libvirt_of(QEMU, of(team));
    assert_eq!(rows(&host), expected);
}

//! The network interfaces of a VM.

use std::sync::Arc;

use kvmeter::{
    account::Account,
    inventory::{
        Devices, Domain, DomainNic, Fact, IfIndex, NicNumbers, OperState::Running, Output,
        SavedIndexes, Taps, UnnamedTap, VmProcess,
    },
};

use super::{Host, QEMU, domain, listed, process};

fn nic(octet: u8, device: &str) -> DomainNic {
    DomainNic {
        mac: vec![2, 0, 0, 0, 0, octet],
        device: Some(device.to_owned()),
        unnamed: None,
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
    let of = |nics| listed(vec![Domain { nics, ..domain(Running) }]);
    host.libvirt_of(QEMU, of(team.clone()));
    assert_eq!(rows(&host), expected);
    // The first of them keeps its index when the last is unplugged, and the last when it is back.
    host.libvirt_of(QEMU, of(team[..3].to_vec()));
    assert_eq!(rows(&host), expected[..3]);
    host.libvirt_of(QEMU, of(team));
    assert_eq!(rows(&host), expected);
}

/// ifIndex of the first interface's device and of its parent, or why there is none.
fn numbers(host: &Host) -> (Result<u32, &'static str>, Result<u32, &'static str>) {
    let nic = &host.view.vms.iter().next().unwrap().nics[0];
    let number = |of| match of {
        IfIndex::Is(number) => Ok(number),
        IfIndex::Absent(why) => Err(why),
    };
    (number(nic.if_index), number(nic.parent))
}

const TAP: NicNumbers =
    NicNumbers { if_index: 7, is_tap: true, owner: None, parent: IfIndex::Is(2) };

fn held(names: &[&str]) -> Taps {
    Taps::Held(names.iter().map(|name| (*name).to_owned()).collect())
}

#[test]
fn an_interface_of_the_host_changes_the_rows_that_use_it() {
    let mut host = Host::new();
    host.fact(Fact::Process(Arc::new(VmProcess { taps: held(&["vnet0"]), ..process(1) })));
    host.libvirt(&[Running], Some(Running));
    let gone = "the host's network namespace has no interface of this name";
    assert_eq!(numbers(&host), (Err(gone), Err(gone)));
    host.fact(Fact::HostNic("vnet0".to_owned(), Some(TAP)));
    assert_eq!(numbers(&host), (Ok(7), Ok(2)));
    let unplugged = NicNumbers { parent: IfIndex::Absent("it is in no bridge"), ..TAP };
    host.fact(Fact::HostNic("vnet0".to_owned(), Some(unplugged)));
    assert_eq!(numbers(&host), (Ok(7), Err("it is in no bridge")));
    host.fact(Fact::HostNic("vnet0".to_owned(), None));
    assert_eq!(numbers(&host), (Err(gone), Err(gone)));
}

#[test]
fn a_name_is_no_interface_unless_the_process_holds_it() {
    let why = |nic: &DomainNic, taps: &Taps, of_domain: bool, numbers_of: NicNumbers| {
        let mut host = Host::new();
        let device = nic.device.clone().unwrap_or_else(|| "eth0".to_owned());
        host.fact(Fact::HostNic(device, Some(numbers_of)));
        let devices = match of_domain {
            true => Devices::default(),
            false => Devices { nics: vec![nic.clone()], ..Devices::default() },
        };
        let found = VmProcess { devices, taps: taps.clone(), ..process(1) };
        host.fact(Fact::Process(Arc::new(found)));
        let domains = if of_domain {
            vec![Domain { nics: vec![nic.clone()], ..domain(Running) }]
        } else {
            Vec::new()
        };
        host.libvirt_of(QEMU, listed(domains));
        assert_eq!(numbers(&host).0.err(), numbers(&host).1.err());
        numbers(&host).0
    };
    let eth0 = nic(1, "eth0");
    let hardware = NicNumbers { if_index: 4, is_tap: false, owner: None, parent: IfIndex::Is(4) };
    let unnamed = |tap| DomainNic { device: None, unnamed: tap, ..nic(1, "") };
    for of_domain in [false, true] {
        let why = |nic: &DomainNic, taps, numbers| why(nic, &taps, of_domain, numbers);
        assert_eq!(why(&eth0, held(&["eth0"]), TAP), Ok(7));
        assert_eq!(
            why(&eth0, held(&["eth0"]), hardware).unwrap_err(),
            "the host's interface of this name is no tap"
        );
        for taps in [held(&[]), held(&["tap0"])] {
            let expected = "the VM's process does not hold a tap of this name";
            assert_eq!(why(&eth0, taps, hardware), Err(expected));
        }
        let expected = "the VM's process is in another network namespace";
        assert_eq!(why(&eth0, Taps::Elsewhere, TAP), Err(expected));
        let expected = "the descriptors of the VM's process cannot be read";
        assert_eq!(why(&eth0, Taps::Unknown, TAP), Err(expected));
        for (tap, expected) in [
            (None, "the host has no interface for it"),
            (
                Some(UnnamedTap::Descriptors(vec![9])),
                "the descriptor that the VM's process was told is no tap",
            ),
            (Some(UnnamedTap::Opened(0)), "which tap of the VM's process it is cannot be told"),
        ] {
            assert_eq!(why(&unnamed(tap), held(&["eth0"]), TAP), Err(expected));
        }
    }
}

#[test]
fn a_domain_without_a_process_has_no_interface() {
    let mut host = Host::new();
    host.fact(Fact::HostNic("vnet0".to_owned(), Some(TAP)));
    host.libvirt(&[Running], Some(Running));
    let why = "no process of the VM is known on this host";
    assert_eq!(numbers(&host), (Err(why), Err(why)));
}

#[test]
fn an_interface_that_is_plugged_in_has_the_process_scanned_again() {
    let mut host = Host::new();
    host.fact(Fact::Process(Arc::new(VmProcess { taps: held(&["vnet0"]), ..process(1) })));
    host.libvirt(&[Running], Some(Running));
    let nics = vec![nic(1, "vnet0"), nic(2, "vnet1")];
    let fact = listed(vec![Domain { nics, ..domain(Running) }]);
    host.core.handle(Fact::Libvirt(QEMU, fact), host.now);
    let mut outputs = std::iter::from_fn(|| host.core.poll_output());
    assert!(outputs.any(|output| matches!(output, Output::Rescan(1))));
}

#[test]
fn a_tap_that_several_processes_hold_is_that_of_root_or_a_domain_or_of_none() {
    let holder = |pid, user: Option<u32>| {
        let devices = Devices { nics: vec![nic(1, "vnet3")], ..Devices::default() };
        let taps = held(&["vnet3"]);
        VmProcess { devices, taps, account: user.map(Account::User), uuid: None, ..process(pid) }
    };
    let found = |host: &mut Host, process| host.fact(Fact::Process(Arc::new(process)));
    let numbers = |host: &Host| -> Vec<(Option<u32>, IfIndex)> {
        host.view.vms.iter().map(|vm| (vm.pid, vm.nics[0].if_index)).collect()
    };
    let unclear = IfIndex::Absent(
        "another VM's process holds a tap of this name, too; which of them is the host's cannot be told",
    );
    let mut host = Host::with(&[], SavedIndexes::default());
    host.fact(Fact::HostNic("vnet3".to_owned(), Some(TAP)));
    found(&mut host, holder(1, Some(1000)));
    assert_eq!(numbers(&host), [(Some(1), IfIndex::Is(7))]);
    found(&mut host, holder(2, Some(1001)));
    assert_eq!(numbers(&host), [(Some(1), unclear), (Some(2), unclear)]);
    // The second turns out to be that of a domain.
    found(&mut host, holder(2, None));
    assert_eq!(numbers(&host), [(Some(1), unclear), (Some(2), IfIndex::Is(7))]);
    // The first gives its tap away.
    found(&mut host, VmProcess { taps: held(&[]), ..holder(1, Some(1000)) });
    found(&mut host, holder(3, None));
    let several =
        IfIndex::Absent("several processes of root or of domains hold a tap of this name");
    assert_eq!(numbers(&host)[1..], [(Some(2), several), (Some(3), several)]);
    host.end(3);
    assert_eq!(numbers(&host)[1..], [(Some(2), IfIndex::Is(7))]);
    // In a network namespace of its own it holds none of the host's.
    found(&mut host, VmProcess { taps: Taps::Elsewhere, ..holder(1, Some(1000)) });
    assert_eq!(numbers(&host)[1..], [(Some(2), IfIndex::Is(7))]);
}

#[test]
fn a_user_takes_no_number_from_the_vm_of_the_user_to_whom_the_tap_was_given() {
    let holder = |pid, user: Option<u32>| {
        let devices = Devices { nics: vec![nic(1, "tap0")], ..Devices::default() };
        let account = user.map(Account::User);
        VmProcess { devices, taps: held(&["tap0"]), account, uuid: None, ..process(pid) }
    };
    let numbers = |owner, users: &[Option<u32>]| -> Vec<Option<u32>> {
        let mut host = Host::with(&[], SavedIndexes::default());
        for (pid, user) in (1..).zip(users) {
            host.fact(Fact::Process(Arc::new(holder(pid, *user))));
        }
        host.fact(Fact::HostNic("tap0".to_owned(), Some(NicNumbers { owner, ..TAP })));
        let number = |of| match of {
            IfIndex::Is(number) => Some(number),
            IfIndex::Absent(_) => None,
        };
        host.view.vms.iter().map(|vm| number(vm.nics[0].if_index)).collect()
    };
    let [a, b, root] = [Some(1000), Some(1001), None];
    assert_eq!(numbers(a, &[a, b]), [Some(7), None]);
    assert_eq!(numbers(a, &[b, a]), [None, Some(7)]);
    assert_eq!(numbers(a, &[b, b, a]), [None, None, Some(7)]);
    // It can be either.
    assert_eq!(numbers(a, &[a, a]), [None, None]);
    assert_eq!(numbers(None, &[a, b]), [None, None]);
    // Root can open it, too.
    assert_eq!(numbers(a, &[a, root]), [None, Some(7)]);
    // Its descriptor was handed on.
    assert_eq!(numbers(a, &[b]), [Some(7)]);
}

//! Made-up hosts: which interface is upon, in and beside which.

use super::*;

/// `NAME KIND [in BRIDGE] [on LOWER]`, one a line, numbered from 1 in this order.
fn host(text: &str) -> Topology {
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let lines: Vec<_> = lines.into_iter().filter(|line| !line.is_empty()).collect();
    let number = |name: &str| {
        let at = lines.iter().position(|line| line[0] == name);
        // One that is in no line is in another network namespace, or gone.
        at.map_or(999, |at| u32::try_from(at).unwrap() + 1)
    };
    let after = |line: &[&str], word: &str| {
        line.iter().position(|of| *of == word).map(|at| number(line[at + 1]))
    };
    let node = |line: &Vec<&str>| {
        let role = Role::of(line[1], || line[1] == "nic");
        let (master, lower) = (after(line, "in"), after(line, "on"));
        (number(line[0]), Node { name: line[0].to_owned(), role, master, lower, owner: None })
    };
    Topology::new(lines.iter().map(node).collect())
}

/// The name of the physical interface, or why there is none.
fn parent<'a>(host: &'a Topology, name: &str) -> &'a str {
    let (_, numbers) = host.all().find(|(of, _)| *of == name).unwrap();
    match numbers.parent {
        IfIndex::Is(index) => &host.nodes[&index].name,
        IfIndex::Absent(why) => why,
    }
}

#[track_caller]
fn check(text: &str, expected: &[(&str, &str)]) {
    let host = host(text);
    for (name, physical) in expected {
        assert_eq!(parent(&host, name), *physical, "{name}");
    }
}

const DEAD_END: &str = "no physical interface is reached through its bridge";
const NO_LOWER: &str = "there is no physical interface below it";

#[test]
fn one_bridge_and_each_kind_of_port() {
    check(
        "eth0 nic
         eth1 nic in bond0
         bond0 bond in br1
         eth0.7 vlan in br0 on eth0
         br0 bridge
         br1 bridge
         br2 bridge
         br3 bridge
         bond0.9 vlan in br3 on bond0
         team0 team in br4
         br4 bridge
         vnet0 tun in br0
         vnet1 tun in br1
         vnet2 tun in br2
         vnet3 tun in br3
         vnet4 tun in br4
         macvtap0 macvtap on eth1
         macvtap1 macvtap on br0
         macvtap2 macvtap on bond0.9
         macvtap3 macvtap on gone
         vxlan0 vxlan in br2
         dummy0 dummy in br2
         vnet9 tun
         ovs-system openvswitch
         vnet8 tun in ovs-system
         enp1 nic in ovs-system",
        &[
            ("vnet0", "eth0"),
            ("vnet1", "bond0"),
            ("vnet2", DEAD_END),
            ("vnet3", "bond0"),
            ("vnet4", "team0"),
            ("macvtap0", "eth1"),
            ("macvtap1", "eth0"),
            ("macvtap2", "bond0"),
            ("macvtap3", NO_LOWER),
            ("vnet9", "it is in no bridge"),
            ("vnet8", "the kernel does not tell which ports of Open vSwitch belong together"),
        ],
    );
}

#[test]
fn a_chain_of_bridges_with_pairs_between_them() {
    let chain = |length: usize, end: &str| {
        let mut text = format!("eth0 nic\nbond0 bond\nvnet0 tun in br0\n{end}\n");
        for at in 0..length {
            let next = at + 1;
            text += &format!(
                "br{at} bridge\na{at} veth in br{at} on b{at}\nb{at} veth in br{next} on a{at}\n"
            );
        }
        text + &format!("br{length} bridge\nvnet1 tun in br{length}")
    };
    for length in [1, 2, 5, 60] {
        for (end, physical) in [
            (format!("macvlan0 macvlan in br{length} on eth0"), "eth0"),
            (format!("bond0.5 vlan in br{length} on bond0"), "bond0"),
            (format!("qinq vlan in br{length} on vlan\nvlan vlan on bond0"), "bond0"),
            (format!("dummy0 dummy in br{length}"), DEAD_END),
        ] {
            let host = host(&chain(length, &end));
            assert_eq!(parent(&host, "vnet0"), physical, "{length} {end}");
            assert_eq!(parent(&host, "vnet1"), physical, "{length} {end}");
        }
    }
}

#[test]
fn a_pair_that_ends_elsewhere_leads_nowhere() {
    check(
        "eth0 nic in br1
         br0 bridge
         br1 bridge
         tap0 tun in br0
         away veth in br0 on other
         lone veth in br0
         reused veth in br0 on one
         one veth in br1 on two
         two veth on one
         routed veth in br0 on host
         host veth on routed",
        &[("tap0", DEAD_END), ("two", "eth0")],
    );
}

#[test]
fn loops_end() {
    check(
        "br0 bridge
         br1 bridge
         br2 bridge
         tap0 tun in br0
         a veth in br0 on b
         b veth in br1 on a
         c veth in br1 on d
         d veth in br2 on c
         e veth in br2 on f
         f veth in br0 on e
         self1 veth in br0 on self2
         self2 veth in br0 on self1
         v1 vlan in br0 on v2
         v2 vlan on v1",
        &[("tap0", DEAD_END), ("v1", NO_LOWER)],
    );
}

#[test]
fn of_several_ways_the_shortest_counts_and_then_the_first_by_name() {
    let lines = [
        "eth0 nic in far",
        "eth2 nic in near",
        "eth1 nic in near",
        "eth3 nic in other",
        "own bridge",
        "near bridge",
        "other bridge",
        "middle bridge",
        "far bridge",
        "tap0 tun in own",
        "tap1 tun in near",
        "p1 veth in own on q1",
        "q1 veth in near on p1",
        "p0 veth in own on q0",
        "q0 veth in middle on p0",
        "r0 veth in middle on s0",
        "s0 veth in far on r0",
        "p2 veth in own on q2",
        "q2 veth in other on p2",
    ];
    // Whatever the interfaces' numbers are.
    for turn in 0..lines.len() {
        let turned = [&lines[turn..], &lines[..turn]].concat().join("\n");
        check(&turned, &[("tap0", "eth1"), ("tap1", "eth1")]);
    }
}

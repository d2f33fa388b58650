//! Taps by their descriptors, and the physical interface behind bridges, veths and namespaces.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::Path,
    process::{self, Command, Stdio},
};

use xtask::lab::{Child, PATIENCE, wait_until};

use crate::lab::{
    network::{Network, hardware, if_index},
    stage::{Stage, index},
};

const IF_INDEX: &[u32] = &[8, 1, 2];
const PARENT: &[u32] = &[8, 1, 3];

/// A QEMU that does not run its guest. `before` is the program that starts it, if there is one.
fn qemu(before: &[&str], network: &str) -> Child {
    let all = [
        before,
        &["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-S", "-nodefaults"],
        &["-display", "none", "-monitor", "none", "-serial", "none", "-accel", "tcg", "-m", "64"],
        &["-name", "nics,debug-threads=on"],
    ]
    .concat();
    let mut command = Command::new(all[0]);
    command.args(&all[1..]).args(network.split_whitespace());
    command.stdin(Stdio::null()).stdout(Stdio::null());
    Child::start(&mut command).unwrap()
}

/// vmIndex and vmNetworkIndex of an interface of the process by its place among them.
fn nic(stage: &Stage, pid: u32, at: usize) -> [u32; 2] {
    let found = |stage: &Stage| {
        let vm = stage.vm("pid", pid)?;
        Some([index(&vm)?, index(vm["nics"].as_array()?.get(at)?)?])
    };
    wait_until(PATIENCE, "the interface has a row", || found(stage))
        .unwrap_or_else(|error| panic!("{error}\n{}\n{}", stage.status(), stage.agent.log()))
}

/// Waits until an interface has these numbers, each 0 where there is none.
#[track_caller]
fn expect(stage: &mut Stage, what: &str, index: [u32; 2], expected: [u64; 2]) {
    let both = |stage: &mut Stage| {
        [IF_INDEX, PARENT].map(|column| stage.number(column, &index).unwrap_or(u64::MAX))
    };
    let is_there = |stage: &mut Stage| (both(stage) == expected).then_some(());
    let result = wait_until(PATIENCE, what, || is_there(stage));
    result.unwrap_or_else(|error| {
        panic!("{error}: {:?}, not {expected:?}\n{}", both(stage), stage.status()["vms"])
    });
}

fn tap(id: &str, host: &str, octet: u8) -> String {
    format!(
        "-netdev tap,id={id},{host},script=no,downscript=no \
         -device virtio-net-pci,netdev={id},mac=52:54:00:05:05:{octet:02x} "
    )
}

#[test]
fn the_parent_is_found_behind_two_bridges_and_follows_what_is_moved() {
    require!("ebpf", "snmpd", "qemu", "root");
    let Some(hardware) = hardware() else {
        xtask::harness::ignore("there is no interface with hardware behind it".to_owned());
    };
    let physical = if_index(&hardware);
    let network = Network::new();
    network.ip(&format!("link add link {hardware} name @p type macvlan mode bridge"));
    network.ip("link add @b0 type bridge");
    network.ip("link add @b1 type bridge");
    network.ip("link add @b2 type bridge");
    network.ip("link add @fa type veth peer name @fb");
    for name in ["@t0", "@t1", "@t2"] {
        network.ip(&format!("tuntap add {name} mode tap"));
    }
    for (port, bridge) in
        [("@t1", "@b1"), ("@fa", "@b1"), ("@fb", "@b0"), ("@p", "@b0"), ("@t0", "@b0")]
    {
        network.ip(&format!("link set {port} master {bridge}"));
    }
    let mut stage = Stage::new();
    let ifname = |tap: &str| format!("ifname={}", network.name(tap));
    let line =
        tap("a", &ifname("t1"), 1) + &tap("b", &ifname("t0"), 2) + &tap("c", &ifname("t2"), 3);
    let qemu = qemu(&["env"], &line);
    let [behind, beside, alone] = [0, 1, 2].map(|at| nic(&stage, qemu.pid(), at));
    let number = |name: &str| if_index(&network.name(name));
    let (t0, t1, t2) = (number("t0"), number("t1"), number("t2"));
    expect(&mut stage, "behind two bridges", behind, [t1, physical]);
    expect(&mut stage, "in the bridge", beside, [t0, physical]);
    expect(&mut stage, "in none", alone, [t2, 0]);

    network.ip("link set @t2 master @b1");
    expect(&mut stage, "plugged in", alone, [t2, physical]);
    network.ip("link set @fb nomaster");
    expect(&mut stage, "the veth is taken out", behind, [t1, 0]);
    expect(&mut stage, "another way", beside, [t0, physical]);
    network.ip("link set @fb master @b2");
    network.ip("link set @p master @b2");
    expect(&mut stage, "both are moved", behind, [t1, physical]);
    expect(&mut stage, "the port is gone", beside, [t0, 0]);

    // The peer's number there may be another interface's here.
    network.ip("netns add @n");
    network.ip("link set @fb netns @n");
    expect(&mut stage, "the peer is in another namespace", behind, [t1, 0]);
    network.ip(&format!("-n {} link set @fb netns {}", network.name("n"), process::id()));
    network.ip("link set @fb master @b2");
    expect(&mut stage, "the peer is back", behind, [t1, physical]);

    // A loop, and then its end.
    network.ip("link set @p nomaster");
    network.ip("link add @la type veth peer name @lb");
    network.ip("link set @la master @b1");
    network.ip("link set @lb master @b2");
    expect(&mut stage, "a loop", behind, [t1, 0]);
    network.ip("link set @p master @b1");
    expect(&mut stage, "a port in the loop", behind, [t1, physical]);
    network.ip("link delete @t1");
    expect(&mut stage, "the tap is gone", behind, [0, 0]);
}

/// Opens a tap with two queues, and becomes the program that the other arguments name, with `FDS` replaced by its
/// descriptors.
const OPEN_TAP: &str = r#"
import fcntl, os, struct, sys
fds = []
for _ in range(2):
    fd = os.open("/dev/net/tun", os.O_RDWR)
    # TUNSETIFF with IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | IFF_VNET_HDR
    fcntl.ioctl(fd, 0x400454ca, struct.pack("16sH22x", sys.argv[1].encode(), 0x5102))
    os.set_inheritable(fd, True)
    fds.append(str(fd))
os.execvp(sys.argv[2], [a.replace("FDS", ":".join(fds)) for a in sys.argv[2:]])
"#;

#[test]
fn a_tap_that_was_handed_over_by_descriptor_is_known() {
    require!("ebpf", "snmpd", "qemu", "root");
    let network = Network::new();
    let mut stage = Stage::new();
    let name = network.name("h");
    let before = ["python3", "-c", OPEN_TAP, &name];
    let given = "-netdev tap,id=a,fds=FDS -device virtio-net-pci,netdev=a,mq=on ";
    let helper = "-netdev user,id=u -device virtio-net-pci,netdev=u ";
    let own = "-netdev tap,id=o,script=no,downscript=no -device virtio-net-pci,netdev=o";
    let qemu = qemu(&before, &format!("{given}{helper}{own}"));
    let [handed_over, user, opened] = [0, 1, 2].map(|at| nic(&stage, qemu.pid(), at));
    expect(&mut stage, "fds=", handed_over, [if_index(&name), 0]);
    expect(&mut stage, "a backend without an interface", user, [0, 0]);
    let of_kernel = wait_until(PATIENCE, "the tap has a name", || {
        let vm = stage.vm("pid", qemu.pid())?;
        vm["nics"][2]["device"].as_str().map(str::to_owned)
    });
    expect(&mut stage, "named by the kernel", opened, [if_index(&of_kernel.unwrap()), 0]);
}

#[test]
fn a_tap_of_another_network_namespace_is_not_the_hosts_of_this_name() {
    require!("ebpf", "snmpd", "qemu", "root");
    let network = Network::new();
    let namespace = network.name("n");
    network.ip("tuntap add @t mode tap");
    network.ip("netns add @n");
    network.ip(&format!("-n {namespace} tuntap add @t mode tap"));
    let mut stage = Stage::new();
    let line = tap("a", &format!("ifname={}", network.name("t")), 1);
    let elsewhere = qemu(&["nsenter", &format!("--net=/run/netns/{namespace}")], &line);
    let here = qemu(&["env"], &line);
    let index = nic(&stage, here.pid(), 0);
    expect(&mut stage, "the host's", index, [if_index(&network.name("t")), 0]);
    let index = nic(&stage, elsewhere.pid(), 0);
    expect(&mut stage, "another namespace's", index, [0, 0]);
    assert!(stage.status().to_string().contains("is in another network namespace"));
}

/// A process that has a KVM VM, the command line of a QEMU, and no tap.
const CLAIM: &str = "
import fcntl, os, time
kvm = os.open('/dev/kvm', os.O_RDWR)
vm = fcntl.ioctl(kvm, 0xae01, 0)
vcpu = fcntl.ioctl(vm, 0xae41, 0)
while True: time.sleep(1000)
";

#[test]
fn an_interface_that_a_command_line_names_is_not_the_vms() {
    require!("ebpf", "snmpd", "kvm", "root");
    let script = tempfile::NamedTempFile::new().unwrap();
    fs::write(script.path(), CLAIM).unwrap();
    let name = hardware().unwrap_or_else(|| "lo".to_owned());
    let mut stage = Stage::new();
    let fake = claimant(script.path(), &name);
    let index = nic(&stage, fake.pid(), 0);
    expect(&mut stage, "no tap is held", index, [0, 0]);
    assert!(stage.status().to_string().contains("does not hold a tap of this name"));
}

fn claimant(script: &Path, name: &str) -> Child {
    let mut command = Command::new("setpriv");
    // Under another name the interpreter does not find its library.
    let start = "import os, sys\nos.environ['PYTHONHOME'] = sys.base_prefix\n\
                 os.execv(sys.executable, ['qemu-system-x86_64'] + sys.argv[1:])";
    command.args(["--pdeathsig", "KILL", "python3", "-c", start]).arg(script);
    command.args(["-name", "claims", "-netdev", &format!("tap,id=a,ifname={name}")]);
    command.args(["-device", "virtio-net-pci,netdev=a,mac=52:54:00:00:00:09"]);
    Child::start(&mut command).unwrap()
}

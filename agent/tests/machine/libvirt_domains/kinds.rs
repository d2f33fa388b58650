//! Domains of many kinds, and what they need on the host.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use xtask::lab::{Child, LoopDevice, PATIENCE, wait_until};

use crate::lab::libvirt::{Host, disk, domain, uuid};

/// What becomes of a domain that is defined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Then {
    StaysOff,
    Runs,
    IsPaused,
    IsSaved,
    /// It is never defined, only started.
    IsTransient,
    /// Its guest panics, and it stays as it is.
    Panics,
    /// Its QEMU is killed.
    IsKilled,
}

/// The domains, and what is undone after them.
pub(crate) struct Kinds {
    pub(crate) names: Vec<String>,
    _links: Vec<Link>,
    _device: LoopDevice,
    _nbd: Child,
}

impl Kinds {
    /// Defines all of them and brings each into its state.
    pub(crate) fn make(host: &Host) -> Self {
        let file = |path: &str| format!("<source file='{path}'/>");
        let simple = |path: &str| disk("file", "disk", "raw", &file(path), "vda", "");
        let nic = |kind: &str, source: &str, number: u32| {
            format!(
                "<interface type='{kind}'>{source}<mac address='52:54:00:00:00:{number:02x}'/>\
                 <model type='virtio'/></interface>"
            )
        };
        let raw = host.image("raw.img", &["-f", "raw"], "8M");
        let other = host.image("other.img", &["-f", "raw"], "9M");
        let base = host.image("base.qcow2", &["-f", "qcow2"], "3G");
        let middle = host.image("middle.qcow2", &["-f", "qcow2", "-b", &base, "-F", "qcow2"], "4G");
        let overlay =
            host.image("overlay.qcow2", &["-f", "qcow2", "-b", &middle, "-F", "qcow2"], "5G");
        let large = host.image("large.qcow2", &["-f", "qcow2"], "40T");
        let device =
            LoopDevice::of(Path::new(&host.image("device.img", &["-f", "raw"], "16M"))).unwrap();
        let socket = host.images.path().join("nbd.sock");
        let nbd = serve_nbd(&socket, &host.image("nbd.img", &["-f", "raw"], "32M"));
        let links = Link::bridge_and_parent();
        let bridge = &links[0].0;
        let physical = physical();
        let mut names = Vec::new();
        let mut make = |name: &str, more: &str, devices: &[String], then: Then| {
            let number = u32::try_from(names.len() + 1).unwrap();
            let text = domain(name, number, more, &devices.concat());
            host.bring(name, number, &text, then);
            names.push(name.to_owned());
        };
        let one = "<vcpu>1</vcpu>";

        make("raw", one, &[simple(&raw), nic("user", "", 1)], Then::Runs);
        make(
            "chain",
            "<vcpu current='2'>4</vcpu>",
            &[disk("file", "disk", "qcow2", &file(&overlay), "vda", "")],
            Then::Runs,
        );
        let source = format!("<source dev='{}'/>", device.path().display());
        make("device", one, &[disk("block", "disk", "raw", &source, "vda", "")], Then::Runs);
        make(
            "drives",
            one,
            &[
                disk("file", "cdrom", "raw", &file(&other), "hda", "<readonly/>"),
                disk("file", "cdrom", "raw", "", "hdb", "<readonly/>"),
                disk(
                    "file",
                    "floppy",
                    "raw",
                    &file(&host.image("floppy", &[], "1440K")),
                    "fda",
                    "",
                ),
            ],
            Then::Runs,
        );
        let source = format!(
            "<source protocol='nbd' name='export'><host transport='unix' socket='{}'/></source>",
            socket.display()
        );
        make("network", one, &[disk("network", "disk", "raw", &source, "vda", "")], Then::Runs);
        make(
            "readonly",
            one,
            &[disk("file", "disk", "qcow2", &file(&base), "sda", "<readonly/>")],
            Then::Runs,
        );
        make(
            "bridged",
            one,
            &[
                nic("bridge", &format!("<source bridge='{bridge}'/>"), 2),
                nic("bridge", &format!("<source bridge='{bridge}'/>"), 3),
            ],
            Then::Runs,
        );
        make(
            "macvtap",
            one,
            &[nic("direct", &format!("<source dev='{physical}' mode='bridge'/>"), 4)],
            Then::Runs,
        );
        make("bare", one, &[], Then::Runs);
        make(
            "pinned",
            "<vcpu>2</vcpu><cputune><vcpupin vcpu='0' cpuset='1'/><vcpupin vcpu='1' cpuset='0-1'/></cputune>",
            &[],
            Then::Runs,
        );
        make("off", one, &[simple(&host.image("off.img", &[], "7M"))], Then::StaysOff);
        make("paused", one, &[simple(&host.image("paused.img", &[], "6M"))], Then::IsPaused);
        make("saved", one, &[simple(&host.image("saved.img", &[], "5M"))], Then::IsSaved);
        make("transient", one, &[], Then::IsTransient);
        make(
            "panicked",
            &format!("{one}<on_crash>preserve</on_crash>"),
            &["<panic model='isa'/>".to_owned()],
            Then::Panics,
        );
        make("killed", one, &[simple(&host.image("killed.img", &[], "4M"))], Then::IsKilled);
        make(&"Zürich-".repeat(20), one, &[], Then::Runs);
        make(
            "large",
            "<maxMemory slots='4' unit='TiB'>3</maxMemory><vcpu>1</vcpu>\
             <cpu><numa><cell id='0' cpus='0' memory='1' unit='TiB'/></numa></cpu>",
            &[disk("file", "disk", "qcow2", &file(&large), "vda", "")],
            Then::StaysOff,
        );
        make(
            "described",
            "<metadata><libosinfo:libosinfo xmlns:libosinfo='http://libosinfo.org/xmlns/libvirt/domain/1.0'>\
             <libosinfo:os id='http://debian.org/debian/13'/></libosinfo:libosinfo></metadata><vcpu>3</vcpu>",
            &[nic("user", "", 5), nic("user", "", 6)],
            Then::StaysOff,
        );
        // libvirt has no event for this; the next one about the domain shows it.
        host.libvirtd.virsh(&["autostart", &uuid(19)]).unwrap();
        host.libvirtd.virsh(&["desc", &uuid(19), "--config", "starts by itself"]).unwrap();
        // TCG: no thread of it is a vCPU of KVM.
        let emulated = domain("emulated", 20, one, &simple(&host.image("emulated.img", &[], "3M")));
        host.bring("emulated", 20, &emulated.replace("type='kvm'", "type='qemu'"), Then::Runs);
        names.push("emulated".to_owned());
        Self { names, _links: links, _device: device, _nbd: nbd }
    }
}

impl Host {
    fn bring(&self, name: &str, number: u32, xml: &str, then: Then) {
        let uuid = uuid(number);
        if then == Then::IsTransient {
            self.libvirtd.create(xml).unwrap();
            return;
        }
        self.libvirtd.define(xml).unwrap_or_else(|error| panic!("{name}: {error}"));
        if then == Then::StaysOff {
            return;
        }
        self.libvirtd.virsh(&["start", &uuid]).unwrap_or_else(|error| panic!("{name}: {error}"));
        match then {
            Then::IsPaused => drop(self.libvirtd.virsh(&["suspend", &uuid]).unwrap()),
            Then::IsSaved => drop(self.libvirtd.virsh(&["managedsave", &uuid]).unwrap()),
            Then::Panics => {
                // The port of the panic device (docs/specs/pvpanic.rst of QEMU), as the guest would write to it.
                let panic = ["qemu-monitor-command", &uuid, "--hmp", "o /b 0x505 1"];
                self.libvirtd.virsh(&panic).unwrap();
                self.wait_for_domstate(&uuid, "crashed");
            }
            Then::IsKilled => {
                let pid = self.libvirtd.pid(name).and_then(|pid| Pid::from_raw(pid.cast_signed()));
                kill_process(pid.unwrap(), Signal::KILL).unwrap();
                self.wait_for_domstate(&uuid, "shut off (crashed)");
            }
            Then::StaysOff | Then::Runs | Then::IsTransient => {}
        }
    }

    fn wait_for_domstate(&self, uuid: &str, state: &str) {
        wait_until(PATIENCE, "the state of the domain", || {
            let said = self.libvirtd.virsh(&["domstate", uuid, "--reason"]).unwrap();
            said.starts_with(state).then_some(())
        })
        .unwrap();
    }
}

fn serve_nbd(socket: &Path, image: &str) -> Child {
    let mut command = Command::new("qemu-nbd");
    command.args([
        "--persistent",
        "--shared=0",
        "--format=raw",
        "--export-name=export",
        "--socket",
    ]);
    command.arg(socket).arg(image).stdin(Stdio::null());
    let child = Child::start(&mut command).unwrap();
    wait_until(PATIENCE, "qemu-nbd listens", || socket.exists().then_some(())).unwrap();
    child
}

/// An interface of this host that is a device.
fn physical() -> String {
    let mut all: Vec<PathBuf> =
        fs::read_dir("/sys/class/net").unwrap().map(|entry| entry.unwrap().path()).collect();
    all.sort_unstable();
    let physical = all.iter().find(|path| path.join("device").exists()).unwrap();
    physical.file_name().unwrap().to_str().unwrap().to_owned()
}

/// A network interface, removed when this is dropped.
struct Link(String);

impl Link {
    fn add(name: &str, arguments: &[&str]) -> Self {
        ip(&[&["link", "add", "name", name], arguments].concat());
        Self(name.to_owned())
    }

    /// A bridge whose way out is a macvlan on a physical interface.
    fn bridge_and_parent() -> Vec<Self> {
        let number = std::process::id() % 1_000_000;
        let (bridge, port) = (format!("kvmb{number}"), format!("kvmp{number}"));
        let links = vec![
            Self::add(&bridge, &["type", "bridge"]),
            Self::add(&port, &["link", &physical(), "type", "macvlan", "mode", "bridge"]),
        ];
        ip(&["link", "set", &port, "master", &bridge]);
        links
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It is gone where it lay upon one that is.
        let _ = Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {said}", arguments.join(" "));
}
